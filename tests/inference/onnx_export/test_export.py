"""`sst2 export`: the folder holds the model that torch has, works without torch, or is not there."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from benchmarks.onnx_variants import count_overflows
from sst2.config.arguments import write_settings
from sst2.config.class_names import are_generic, names_in_order
from sst2.config.flag_groups import SAMPLE
from sst2.config.settings import Settings
from sst2.data.checked_rows import read_file
from sst2.data.sample import sample_config, sample_sentences, sample_tokenizer
from sst2.inference.onnx_export.command import PROGRAM, check_output_dir, locate, main
from sst2.inference.onnx_export.figures import TOLERANCE, padded, probe_batches, require_same_logits
from sst2.inference.onnx_export.onnx_card import onnx_card
from sst2.inference.onnx_export.onnx_model import onnx_classifier, torch_classifier
from sst2.models.export import stock_classifier
from sst2.models.loading import load_classifier
from sst2.runs.run_folder import RunFolder
from sst2.utils.checksums import verify_folder
from sst2.utils.errors import UserError, exit_codes
from tests.support.running import REPOSITORY

FILES = {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md", "export.json"}


def write_run(folder: Path, **changes: Any) -> Path:
    """A finished run's settings and model, of random weights that tell sentences apart."""
    tokenizer = sample_tokenizer()
    config: Any = sample_config(len(tokenizer))
    config.update({"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}} | changes)
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.weight.mul_(30)
        logits = model.eval()(
            **tokenizer(sample_sentences("validation")[0][:70], padding=True, return_tensors="pt")
        ).logits
        model.classifier.bias.sub_(logits.median(dim=0).values)  # as many of one class as of another
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    settings = Settings(output_dir=str(folder), smoke=True, model_name_or_path=SAMPLE, dataset_name=SAMPLE)
    write_settings(RunFolder(folder), settings)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("export") / "my-run")


def exit_of(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop, exit_codes(PROGRAM):
        main([*map(str, arguments)])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def exported(run: Path, tsv_files: tuple[Path, Path]) -> tuple[Path, subprocess.CompletedProcess[str]]:
    command = [
        sys.executable,
        "-m",
        "sst2.export",
        run,
        "--format",
        "onnx",
        "--int8",
        "--validation_file",
        tsv_files[1],
    ]
    return run / "onnx", subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_it_succeeds_without_a_warning(exported: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = exported
    steps = ("writing the ONNX model", "quantizing it to int8", "measuring accuracy and latency")
    said = [f"{number} of 3: {step}\n" for number, step in enumerate(steps, start=1)]
    assert (done.returncode, done.stderr) == (0, "".join(said))
    assert done.stdout.splitlines()[-1].endswith(str(folder))
    verify_folder(folder)
    assert {path.name for path in folder.iterdir()} == FILES | {"model_int8.onnx", "manifest.json"}
    assert {path.name for path in folder.parent.iterdir()} == {"config.yaml", "resolved.yaml", "model", "onnx"}


@pytest.mark.slow
def test_any_batch_has_the_logits_of_torch(exported: tuple[Path, Any], run: Path) -> None:
    loaded, tokenizer = load_classifier("MODEL", str(run / "model"))
    reference = torch_classifier(stock_classifier(loaded.config, loaded.state_dict()).eval())
    float32, int8 = (onnx_classifier(exported[0] / name, 1) for name in ("model.onnx", "model_int8.onnx"))
    sentences = sample_sentences("train")[0]
    for size, length in ((1, 1), (1, 40), (3, 1), (50, 1), (5, 511)):  # none of them a probe
        texts = [" ".join(sentences[n : n + (n % length) + 1]) for n in range(size)]
        inputs = padded(tokenizer, texts)
        expected = reference(inputs)
        assert np.abs(float32(inputs) - expected).max() < 1e-4
        # coarse, and far from another model's: the logits of different sentences are several units apart
        assert np.abs(int8(inputs) - expected).max() < 1


@pytest.mark.slow
def test_the_graph_is_as_promised(exported: tuple[Path, Any], run: Path) -> None:
    graphs = {name: onnx.load(exported[0] / name) for name in ("model.onnx", "model_int8.onnx")}
    for model in graphs.values():
        onnx.checker.check_model(model)
        assert {entry.domain: entry.version for entry in model.opset_import}[""] == 20
        shapes = {
            value.name: (
                value.type.tensor_type.elem_type,
                [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
            )
            for value in (*model.graph.input, *model.graph.output)
        }
        assert shapes == {
            "input_ids": (onnx.TensorProto.INT64, ["batch", "length"]),
            "attention_mask": (onnx.TensorProto.INT64, ["batch", "length"]),
            "logits": (onnx.TensorProto.FLOAT, ["batch", 2]),
        }
    kinds = {node.op_type for node in graphs["model_int8.onnx"].graph.node}
    assert "MatMulInteger" in kinds
    assert count_overflows(exported[0] / "model_int8.onnx") == 0
    sizes = [(exported[0] / name).stat().st_size for name in graphs]
    assert sizes[1] < sizes[0] / 2  # the tiny model's graph itself takes its share


@pytest.mark.slow
def test_nothing_in_it_tells_of_this_machine(exported: tuple[Path, Any], run: Path) -> None:
    for file in exported[0].iterdir():
        content = file.read_bytes()
        for place in (run.parent, Path(torch.__file__).parent, REPOSITORY):
            assert str(place).encode() not in content, file


@pytest.mark.slow
def test_the_cards_example_runs_without_torch(exported: tuple[Path, Any], run: Path) -> None:
    match = re.search(r"```python\n(.*?)```", (exported[0] / "README.md").read_text(), re.DOTALL)
    assert match
    absent = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'sst2')))\n"
    done = subprocess.run(
        [sys.executable, "-c", absent + match[1]], cwd=exported[0], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    loaded, tokenizer = load_classifier("MODEL", str(run / "model"))
    classify = torch_classifier(stock_classifier(loaded.config, loaded.state_dict()).eval())
    expected = classify(padded(tokenizer, ["a gripping, funny film"]))[0].argmax()
    assert done.stdout.strip() == ("NEGATIVE", "POSITIVE")[expected]


@pytest.mark.slow
def test_the_figures_are_those_of_the_file(exported: tuple[Path, Any], run: Path, tsv_files: Any) -> None:
    report = json.loads((exported[0] / "export.json").read_text())
    data = read_file(str(tsv_files[1]), labels_required=True)
    loaded, tokenizer = load_classifier("MODEL", str(run / "model"))
    reference = torch_classifier(stock_classifier(loaded.config, loaded.state_dict()).eval())
    int8 = onnx_classifier(exported[0] / "model_int8.onnx", 1)
    logits = {
        name: np.concatenate([classify(padded(tokenizer, [sentence])) for sentence in data["sentence"]])
        for name, classify in {"torch_float32": reference, "onnx_int8": int8}.items()
    }
    predicted = {name: values.argmax(axis=1) for name, values in logits.items()}
    assert {*predicted["torch_float32"].tolist()} == {0, 1}  # else agreement would say nothing
    for name, classes in predicted.items():
        figures = report["forms"][name]
        assert figures["accuracy"] == pytest.approx((classes == data["label"][:]).mean())
        assert figures["same_predictions"] == pytest.approx((classes == predicted["torch_float32"]).mean())
        assert figures["accuracy_ci95"][0] < figures["accuracy"] < figures["accuracy_ci95"][1]
        for batch in ("batch_1", "batch_32"):
            assert 0 < figures[batch]["p5_ms"] <= figures[batch]["median_ms"] <= figures[batch]["p95_ms"]
    assert report["forms"]["onnx_float32"]["same_predictions"] == 1
    size = (exported[0] / "model_int8.onnx").stat().st_size
    assert report["forms"]["onnx_int8"]["megabytes"] == size / 1e6
    assert 0 < report["probes"]["largest_logit_difference"]["onnx_float32"] < 1e-4
    assert (report["measured_on"], report["threads"], report["opset"]) == ("dev.tsv", 1, 20)
    assert (exported[0] / "README.md").read_text() == onnx_card(report)


@pytest.mark.slow
def test_it_is_replaced_only_on_demand(
    exported: tuple[Path, Any], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in exported[0].iterdir()}
    assert exit_of(run) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--overwrite_output_dir replaces it" in error
    assert {path.name: path.stat().st_mtime_ns for path in exported[0].iterdir()} == before
    check_output_dir(exported[0], overwrite=True)
    (exported[0] / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files, notes\.txt for one"):
        check_output_dir(exported[0], overwrite=True)
    (exported[0] / "notes.txt").unlink()


@pytest.mark.slow
def test_a_mismatch_leaves_the_folder_as_it_was(
    exported: tuple[Path, Any], run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The two add up in different orders: no difference at all is more than they can do.
    monkeypatch.setattr("sst2.inference.onnx_export.folder.TOLERANCES", {"onnx_float32": 0.0})
    shutil.copytree(exported[0], tmp_path / "out")
    before = (tmp_path / "out" / "export.json").read_bytes()
    assert exit_of(run, "--output_dir", tmp_path / "out", "--overwrite_output_dir") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "export.json").read_bytes() == before


def test_probes_are_of_several_sizes_and_lengths() -> None:
    shapes = [inputs["input_ids"].shape for inputs in probe_batches(sample_tokenizer())]
    assert {1, 2, 7, 32} <= {size for size, _ in shapes}
    assert len({length for _, length in shapes}) >= 3
    assert max(length for _, length in shapes) == 512
    assert any((inputs["attention_mask"] == 0).any() for inputs in probe_batches(sample_tokenizer()))


def test_another_model_is_not_taken_for_the_same() -> None:
    tokenizer = sample_tokenizer()
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(sample_config(len(tokenizer))).eval()
    same, other = (stock_classifier(model.config, model.state_dict()).eval() for _ in range(2))
    batches = probe_batches(tokenizer)
    assert require_same_logits(torch_classifier(model), torch_classifier(same), batches) <= TOLERANCE
    with torch.no_grad():
        other.distilbert.transformer.layer[0].attention.q_lin.bias[0] += 1
    with pytest.raises(RuntimeError, match="gives other logits than torch, by 0"):
        require_same_logits(torch_classifier(model), torch_classifier(other), batches)
    with torch.no_grad():
        other.classifier.bias[0] = float("nan")
    with pytest.raises(RuntimeError, match="by nan"):
        require_same_logits(torch_classifier(model), torch_classifier(other), batches, tolerance=float("inf"))


def test_where_it_goes_unless_told_otherwise(run: Path, tmp_path: Path) -> None:
    assert locate(str(run)) == (str(run / "model"), "my-run", run / "onnx")
    assert locate(str(run / "model")) == (str(run / "model"), "my-run", run / "onnx")
    alone = Path(shutil.copytree(run / "model", tmp_path / "sentiment"))
    assert locate(str(alone)) == (str(alone), "sentiment", tmp_path / "sentiment-onnx")
    assert locate("somebody/sentiment") == ("somebody/sentiment", "somebody/sentiment", None)


def test_mistakes_are_one_line_and_leave_nothing(
    run: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = Path(shutil.copytree(run, tmp_path / "unfinished", ignore=shutil.ignore_patterns("model")))
    one = write_run(tmp_path / "one", num_labels=1) / "model"
    spam = write_run(tmp_path / "spam", id2label={0: "HAM", 1: "SPAM"}, label2id={"HAM": 0, "SPAM": 1}) / "model"
    bert = Path(shutil.copytree(run / "model", tmp_path / "bert"))
    (bert / "config.json").write_text(json.dumps({"model_type": "bert"}))
    broken = write_run(tmp_path / "broken")
    with torch.no_grad():
        model = DistilBertForSequenceClassification.from_pretrained(broken / "model")
        model.classifier.bias[0] = float("nan")
        model.save_pretrained(broken / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    (tmp_path / "words.csv").write_text("sentence,label\nfine,positive\n")
    (tmp_path / "unlabeled.csv").write_text("sentence,label\nfine,\n")
    before = sorted(tmp_path.rglob("*"))
    mistakes: dict[tuple[object, ...], str] = {
        (): "the following arguments are required: MODEL",
        (run, "--int4"): "--int4 is not a flag, did you mean --int8?; --help lists all flags",
        (run, "--format", "gguf"): "invalid choice: 'gguf'",
        (unfinished,): "is a run that has not finished",
        (tmp_path / "typo",): "does not exist as a folder",
        ("typo",): "is no local folder: check its name, or add --output_dir DIR",
        (tmp_path / "full",): "has no config.json",
        (bert,): "weights of a BERT, bert.embeddings.LayerNorm.bias for one",
        (tiny_model, "--output_dir", tmp_path / "x"): "has no trained classification head",
        (one,): "is a model of one class, or of numbers: give a classifier of two classes or more",
        (spam, "--validation_file", tmp_path / "words.csv"): "label 'positive' is unknown: give 0 or ham, 1 or spam",
        (spam, "--validation_file", tmp_path / "words.csv", "--sentence_column", "text"): "has no column 'text'",
        (broken,): "logits that are not finite",
        (run, "--output_dir", tmp_path / "unlabeled.csv"): "is a file: name a folder",
        (run, "--output_dir", tmp_path / "full"): "holds other files, thesis.tex for one: name another folder",
        (run, "--output_dir", tmp_path / "full", "--overwrite_output_dir"): "holds other files",
        (run, "--output_dir", run / "model", "--overwrite_output_dir"): "holds other files",
        (run, "--output_dir", tmp_path / "x", "--validation_file", tmp_path): "is a folder",
        (run, "--output_dir", tmp_path / "x", "--validation_file", "none.csv"): "does not exist",
        (run, "--output_dir", tmp_path / "x", "--validation_file", tmp_path / "unlabeled.csv"): "line 2",
    }
    for arguments, message in mistakes.items():
        capsys.readouterr()
        assert exit_of(*arguments) == 2, arguments
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert error.startswith(f"{PROGRAM}: error: ")
        assert message in error
    assert sorted(tmp_path.rglob("*")) == before


def test_without_its_packages_it_names_the_way_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, package, None)  # which is how Python marks what cannot be imported
    assert exit_of(run, "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error == (
        f"{PROGRAM}: error: --format onnx needs onnxruntime and onnxscript: pip install onnxruntime onnxscript\n"
    )
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_cannot_be_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(run, "--output_dir", "/proc/export") == 2
    assert "--output_dir /proc/export cannot be written" in capsys.readouterr().err


def test_nothing_imports_the_optional_packages_before_they_are_needed() -> None:
    for file in (REPOSITORY / "src" / "sst2").rglob("*.py"):
        for statement in ast.parse(file.read_text()).body:
            names = (
                [alias.name for alias in getattr(statement, "names", [])] if isinstance(statement, ast.Import) else []
            )
            names += [str(statement.module)] if isinstance(statement, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"onnx", "onnxruntime", "onnxscript"}, file


def test_a_config_without_names_has_labels_by_number() -> None:
    id2label: Any = DistilBertConfig().id2label
    assert are_generic(names_in_order(id2label))
