"""A checkpoint of whatever form is read as `transformers.pipeline` reads it, or refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, DistilBertConfig, pipeline

from sst2.inference.predict import command
from sst2.utils.errors import exit_codes
from tests.support.odd_checkpoints import FAST, FORMS, SENTENCES, Form
from tests.support.running import Finished

Predict = Callable[[Path], tuple[int, list[float], str]]
Train = Callable[[Path], Finished]
ALL_ODDITIES = {
    name: value
    for form in FORMS.values()
    if form.config and (form.trains or not form.refused)
    for name, value in form.config.items()
    if name not in ("id2label", "n_layers", "auto_map", "dtype") and "attn" not in name
}


def probability_of_class_1(answer: dict[str, Any]) -> float:
    *_, probability = [value for name, value in answer.items() if name.startswith("probability_")][:2]
    return float(probability)


@pytest.fixture
def predict(capfd: pytest.CaptureFixture[str]) -> Predict:
    """`sst2 predict`: its exit code, the probabilities of class 1, and what it says."""

    def run(model: Path) -> tuple[int, list[float], str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end, exit_codes(command.PROGRAM):
            command.main([str(model), *SENTENCES, "--format", "jsonl"])
        output, said = capfd.readouterr()
        probabilities = [probability_of_class_1(json.loads(line)) for line in output.splitlines()]
        return int(end.value.code or 0), probabilities, said

    return run


@pytest.fixture
def train_two_steps(train_here: Callable[..., Finished], tmp_path: Path) -> Train:
    """`train_sst2.py` from this checkpoint."""
    rows = "".join(f"{text}\t{number % 2}\n" for number, text in enumerate(SENTENCES))
    (tmp_path / "rows.tsv").write_text(f"sentence\tlabel\n{rows}")

    def run(model: Path) -> Finished:
        flags = ["--model_name_or_path", model, "--max_train_steps", 2, "--learning_rate", 1e-2, "--max_length", 64]
        return train_here(*flags, "--train_file", tmp_path / "rows.tsv", "--validation_file", tmp_path / "rows.tsv")

    return run


def by_pipeline(model: Path) -> list[float]:
    """The probabilities of class 1, by the library alone."""
    classify: Any = pipeline("text-classification", str(model), dtype=torch.float32, device="cpu", top_k=None)
    positive = classify.model.config.id2label[1]
    return [next(a["score"] for a in answer if a["label"] == positive) for answer in classify(SENTENCES)]


def assert_one_line(said: str, reason: str) -> None:
    assert said.count("\n") == 1, said
    assert "error: " in said
    assert reason in said


@pytest.mark.parametrize("form", FORMS.values(), ids=[*FORMS])
def test_it_is_predicted_as_pipeline_does_or_refused_in_one_line(form: Form, predict: Predict, tmp_path: Path) -> None:
    model = form.write(tmp_path / "model")
    code, probabilities, said = predict(model)
    if form.refused:
        assert (code, probabilities) == (2, []), said
        assert_one_line(said, form.refused)
        return
    assert code == 0, said
    if form.beyond_pipeline:
        with pytest.raises((TypeError, ValueError, ImportError)):
            by_pipeline(model)
        model = Form(form.kind, form.settings).write(tmp_path / "without the oddity")
    expected = by_pipeline(model)
    assert max(expected) - min(expected) > 0.1
    assert probabilities == pytest.approx(expected, abs=1e-5)


def assert_trained_as_pipeline_reads_it(model: Path, train: Train, predict: Predict) -> None:
    done = train(model)
    assert done.code == 0, done.stderr
    exported = done.run_dir / "model"
    code, probabilities, said = predict(exported)
    assert code == 0, said
    assert probabilities == pytest.approx(by_pipeline(exported), abs=1e-5)
    before, after = (AutoTokenizer.from_pretrained(folder)(SENTENCES) for folder in (model, exported))
    assert before["input_ids"] == after["input_ids"]
    assert set(after) == {"input_ids", "attention_mask"}
    config = json.loads((exported / "config.json").read_text())
    stock = json.loads(DistilBertConfig(id2label={0: "NEGATIVE", 1: "POSITIVE"}).to_json_string())
    assert set(config) <= {*stock, "architectures", "dtype", "transformers_version", "sinusoidal_pos_embds"}


def test_all_oddities_of_a_config_at_once_change_nothing(
    train_two_steps: Train, predict: Predict, tmp_path: Path
) -> None:
    form = Form("byte-level BPE", FAST | {"padding_side": "left"}, config=ALL_ODDITIES)
    assert_trained_as_pipeline_reads_it(form.write(tmp_path / "model"), train_two_steps, predict)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS.values(), ids=[*FORMS])
def test_it_is_trained_into_what_pipeline_reads_alike_or_refused_in_one_line(
    form: Form, train_two_steps: Train, predict: Predict, tmp_path: Path
) -> None:
    model = form.write(tmp_path / "model")
    if form.refused and not form.trains:
        done = train_two_steps(model)
        assert (done.code, done.run_dir.exists()) == (2, False)
        *before, last = done.stderr.splitlines(keepends=True)
        assert not any("Traceback" in line for line in before)
        assert_one_line(last, form.refused)
    else:
        assert_trained_as_pipeline_reads_it(model, train_two_steps, predict)
