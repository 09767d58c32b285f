"""`sst2 predict`: the stock model's answers in the order asked, whatever the source; mistakes in one line."""

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
)

from sst2.data.sample import sample_sentences
from sst2.inference.predict import command
from sst2.inference.predict.classifier import Classifier, slices
from sst2.inference.predict.inputs import CHUNK_CHARACTERS, chunks
from sst2.inference.predict.writers import NewFile
from sst2.models.loading import load_classifier
from sst2.runs.run_folder import MARK
from sst2.utils.errors import UserError, exit_codes
from tests.support.hub_server import HubServer
from tests.support.running import terminal

LONG = "a gripping , funny film " * 200  # 1,000 words: more than the model takes
SENTENCES = [*sample_sentences("validation")[0][:150], LONG, 'commas, "quotes" and\ttabs', "umlauts: äöü, 电影", "x"]
COMMAND = [sys.executable, "-m", "sst2.predict"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process. Returns exit code, standard output and standard error."""
    monkeypatch.setattr(command, "CHUNK", 64)  # several chunks, the last one short

    def run_it(*flags: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            with exit_codes(command.PROGRAM):
                command.main([*map(str, flags)])
        except SystemExit as stop:
            return int(stop.code or 0), *capfd.readouterr()
        raise AssertionError("exit_codes always leaves")

    return run_it


@pytest.fixture(scope="module")
def expected(tiny_classifier: Path) -> np.ndarray:
    """(sentences, 2) probabilities of the stock model, each sentence by itself."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_classifier)
    with torch.inference_mode():
        logits = [model(**tokenizer(s, truncation=True, return_tensors="pt")).logits[0] for s in SENTENCES]
    probabilities = torch.stack(logits).softmax(dim=1).numpy()
    assert 0.1 < (probabilities[:, 1] > 0.5).mean() < 0.9  # a test needs both answers
    return probabilities


def write_sentences(file: Path, sentences: list[str]) -> Path:
    """In the format of the file's suffix; without labels."""
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"sentence": sentences}), file)
    elif file.suffix == ".csv":
        with file.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([["sentence"], *([sentence] for sentence in sentences)])
    else:
        lines = [json.dumps({"sentence": s}) for s in sentences] if file.suffix == ".jsonl" else sentences
        header = "sentence\n" if file.suffix == ".tsv" else ""
        file.write_text(header + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl", ".parquet"])
def test_answers_are_the_stock_models_in_the_order_of_the_input(
    suffix: str, run: Run, tiny_classifier: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    keep = [row for row, sentence in enumerate(SENTENCES) if suffix != ".tsv" or "\t" not in sentence]
    sentences = [SENTENCES[row] for row in keep]
    file = write_sentences(tmp_path / f"sentences{suffix}", sentences)
    code, out, said = run(tiny_classifier, "--file", file, "--output", tmp_path / "answers.csv")
    assert (code, out) == (0, "")
    assert said == "sst2 predict: 1 sentence has more than 512 tokens, the rest is cut off\n"
    with (tmp_path / "answers.csv").open(encoding="utf-8", newline="") as stream:
        rows = [*csv.DictReader(stream)]
    assert [*rows[0]] == ["prediction", "probability_positive", "sentence"]
    assert [row["sentence"] for row in rows] == sentences
    assert [float(row["probability_positive"]) for row in rows] == pytest.approx(expected[keep, 1], abs=1e-5)
    assert [row["prediction"] for row in rows] == [("NEGATIVE", "POSITIVE")[n] for n in expected[keep].argmax(1)]
    assert {path.name for path in tmp_path.iterdir()} == {file.name, "answers.csv"}


def test_sentences_on_the_command_line_are_answered_for_a_person(
    run: Run, tiny_classifier: Path, expected: np.ndarray
) -> None:
    code, out, _ = run(tiny_classifier, SENTENCES[0], "--format", "text", SENTENCES[1], "up\x1b[2A\nand down")
    label, probability, sentence = out.splitlines()[0].split("  ")
    assert (label, sentence) == (("NEGATIVE", "POSITIVE")[expected[0].argmax()], SENTENCES[0])
    assert float(probability) == pytest.approx(expected[0].max(), abs=1e-4)
    assert out.splitlines()[2].endswith("  up\\x1b[2A\\nand down")  # a terminal obeys none of it
    assert (code, len(out.splitlines())) == (0, 3)


def test_standard_input_is_read_as_utf_8_whatever_the_locale(
    run: Run, tiny_classifier: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    file = write_sentences(tmp_path / "sentences.txt", SENTENCES)
    before = os.dup(0)
    with file.open("rb") as stream:
        os.dup2(stream.fileno(), 0)
        try:
            code, out, _ = run(tiny_classifier, "--format", "jsonl")
        finally:
            os.dup2(before, 0)
            os.close(before)
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [answer["sentence"] for answer in answers] == SENTENCES
    assert [answer["probability_positive"] for answer in answers] == pytest.approx(expected[:, 1], abs=1e-5)


def test_a_run_stands_for_its_model_and_max_length_cuts(
    run: Run, tiny_classifier: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(MARK + "\n")
    assert run(tmp_path / "run", "x")[::2] == (
        2,
        f"sst2 predict: error: MODEL {tmp_path}/run is a run that has not finished: it has no model yet\n",
    )
    shutil.copytree(tiny_classifier, tmp_path / "run" / "model")
    _, whole, _ = run(tmp_path / "run", LONG, "--format", "jsonl")
    assert json.loads(whole)["probability_positive"] == pytest.approx(expected[SENTENCES.index(LONG), 1], abs=1e-5)
    _, cut, _ = run(tmp_path / "run", LONG, "--max_length", 5, "--format", "jsonl")
    _, short, _ = run(tmp_path / "run", "a gripping ,", "--format", "jsonl")
    assert json.loads(cut)["probability_positive"] == json.loads(short)["probability_positive"]


def test_names_of_the_classes_are_the_models_own(run: Run, tiny_classifier: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_classifier, tmp_path / "model"))
    before = json.loads(run(folder, "fine", "--format", "jsonl")[1])
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "positive", "1": "negative"}, "label2id": {"positive": 0, "negative": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    after = json.loads(run(folder, "fine", "--format", "jsonl")[1])
    assert {before["prediction"], after["prediction"].upper()} == {"NEGATIVE", "POSITIVE"}
    assert after["probability_positive"] == pytest.approx(1 - before["probability_positive"], abs=1e-5)
    config |= {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    told = "sst2 predict: no class of the model is named POSITIVE: probability_positive is that of LABEL_1\n"
    assert run(folder, "fine", "--format", "csv")[2] == told
    assert run(folder, "fine", "--format", "text")[2] == ""


def test_bf16_is_close(tiny_classifier: Path) -> None:
    logits = {}
    for precision in ("no", "bf16"):
        model, tokenizer = load_classifier("MODEL", str(tiny_classifier))
        classifier = Classifier(model, tokenizer, torch.device("cpu"), precision=precision)
        logits[precision] = classifier.logits(SENTENCES)
    assert not np.array_equal(logits["no"], logits["bf16"])
    assert np.abs(logits["no"] - logits["bf16"]).max() < 0.05 * np.abs(logits["no"]).max()


def test_no_more_than_a_chunk_is_read_ahead(tiny_classifier: Path) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"film number {read}"

    classifier = Classifier(*load_classifier("MODEL", str(tiny_classifier)), torch.device("cpu"))
    answers = command.answer(chunks(endless(), 20), classifier, explained=False, done=lambda count: None)
    for turn in range(1, 4):
        assert [answer.sentence for answer in next(answers)][-1] == f"film number {20 * turn}"
        assert read == 20 * turn


def test_chunks_of_long_sentences_are_small() -> None:
    long = "x" * (CHUNK_CHARACTERS // 4)
    assert [len(chunk) for chunk in chunks([long] * 9 + ["short"] * 9, 8)] == [4, 4, 8, 2]


def test_batches_have_as_many_tokens_as_they_may() -> None:
    lengths = np.array([3, 3, 4, 5, 5, 9, 30])
    cut = [*slices(np.cumsum(lengths), 10)]
    assert [lengths[part].tolist() for part in cut] == [[3, 3, 4], [5, 5], [9], [30]]


MISTAKES: dict[str, tuple[str, str]] = {
    "empty.txt": ("fine\n\nfine\n", "{file} line 2: the sentence is empty"),
    "none.txt": ("", "{file} holds no sentences"),
    "fields.csv": ("sentence,label\nfine,1\na,b,1\n", "{file} line 3 has 3 fields"),
    "column.csv": ("text\nfine\n", "{file} has no column 'sentence'"),
    "broken.jsonl": ('{"sentence": "fine"}\n{"sentence": \n', "{file} line 2 is not JSON"),
    "number.jsonl": ('{"sentence": 4}\n', "{file} line 1: the sentence is 4, not text"),
    "words.doc": ("fine\n", "--file {file} must end in one of .txt .csv"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_file_is_one_line_with_file_and_row(
    name: str, run: Run, tiny_classifier: Path, tmp_path: Path
) -> None:
    content, expected = MISTAKES[name]
    (tmp_path / name).write_text(content)
    code, out, said = run(tiny_classifier, "--file", tmp_path / name, "--output", tmp_path / "answers.csv")
    assert (code, out, said.count("\n")) == (2, "", 1)
    assert expected.format(file=tmp_path / name) in said
    assert {path.name for path in tmp_path.iterdir()} == {name}  # nothing was answered, nothing is left


def test_ctrl_c_says_where_the_answers_are(tiny_classifier: Path, tmp_path: Path) -> None:
    target, unfinished = tmp_path / "answers.csv", tmp_path / ".answers.csv.unfinished"
    started = [*COMMAND, str(tiny_classifier), "--output", str(target)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs in the background ignore it
    with subprocess.Popen(started, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, before)
        assert process.stdin is not None
        process.stdin.write("a gripping film\n" * 20_000)
        process.stdin.flush()
        while not unfinished.exists() or not unfinished.stat().st_size:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith(f"stopped; what was written before is in {unfinished}\n")
    assert not target.exists()


def test_what_was_answered_before_a_mistake_does_not_look_finished(
    run: Run, tiny_classifier: Path, tmp_path: Path
) -> None:
    file = write_sentences(tmp_path / "sentences.txt", [*SENTENCES, " ", "fine"])
    code, _, said = run(tiny_classifier, "--file", file, "--output", tmp_path / "answers.csv")
    assert (code, said.count("\n")) == (2, 1)
    assert f"{file} line {len(SENTENCES) + 1}: the sentence is empty" in said
    assert said.endswith(f"what was written before is in {tmp_path}/.answers.csv.unfinished\n")
    assert not (tmp_path / "answers.csv").exists()
    assert len((tmp_path / ".answers.csv.unfinished").read_text().splitlines()) == 1 + 128  # two whole chunks
    write_sentences(file, SENTENCES)
    code, _, said = run(tiny_classifier, "--file", file, "--output", tmp_path / "answers.csv")
    assert code == 2
    assert "/.answers.csv.unfinished is what another start is writing, or has left: move it away" in said
    (tmp_path / ".answers.csv.unfinished").rename(tmp_path / "first.csv")  # nobody has touched it
    assert len((tmp_path / "first.csv").read_text().splitlines()) == 1 + 128
    assert run(tiny_classifier, "--file", file, "--output", tmp_path / "answers.csv")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {file.name, "answers.csv", "first.csv"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["{model}", "x", "--file", "{file}"], "--file and sentences on the command line both name the input"),
        (["{model}", "--file", "missing.csv"], "--file missing.csv does not exist"),
        (["{model}", "--file", "{model}"], "--file {model} is a folder"),
        (["{model}", "--file", "x" * 300 + ".csv"], ".csv cannot be used (File name too long): give another path\n"),
        (["{model}", "--sentence_column", "review"], "--sentence_column needs --file beside it: --file /dev/stdin"),
        (["{model}", "x", "--sentence_column", "review"], "--sentence_column needs --file beside it"),
        (["{model}", "--file", "{file}", "--sentence_column", "a"], "names no column of --file {file}: a txt is a"),
        (["{model}", "fine", " "], "sentence 2: the sentence is empty"),
        (["{model}", "x", "--output", "{file}"], "--output {file} is there already and is not overwritten"),
        (["{model}", "x", "--output", "{file}/x.csv"], "--output {file}/x.csv cannot be written (Not a directory)"),
        (["{model}", "x", "--output", "{file}.xlsx"], "no format has the suffix .xlsx: give --format as well"),
        (["{model}", "x", "--max_length", "513"], "--max_length 513 cannot work: give 3 to 512"),
        (["{model}", "x", "--max_length", "2"], "--max_length 2 cannot work"),
        (["{model}", "x", "--html", "x.html"], "--html needs --explain"),
        (["{model}", "x", "--explain", "--html", "x", "--output", "x"], "--html and --output both name x"),
        (["{model}", "x", "--mixed_precision", "fp8"], "invalid choice: 'fp8'"),
        (["{model}", "x", "--ouput", "x.csv"], "--ouput"),
        (["/no/such/folder", "x"], "MODEL /no/such/folder does not exist as a folder"),
        ([], "MODEL"),
    ],
)
def test_mistakes_in_flags(flags: list[str], expected: str, run: Run, tiny_classifier: Path, tmp_path: Path) -> None:
    file = write_sentences(tmp_path / "sentences.txt", ["fine"])
    names = {"model": tiny_classifier, "file": file}
    code, out, said = run(*(flag.format(**names) for flag in flags))
    assert (code, out, said.count("\n")) == (2, "", 1), said
    assert expected.format(**names) in said
    assert file.read_text() == "fine\n"
    assert {path.name for path in tmp_path.iterdir()} == {file.name}


def without_config(folder: Path, tiny_model: Path) -> None:
    (folder / "config.json").unlink()


def an_encoder(folder: Path, tiny_model: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(tiny_model, folder)


def one_class(folder: Path, tiny_model: Path) -> None:
    DistilBertForSequenceClassification.from_pretrained(tiny_model, num_labels=1).save_pretrained(folder)


def several_labels(folder: Path, tiny_model: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
    (folder / "config.json").write_text(json.dumps(config))


def a_tagger(folder: Path, tiny_model: Path) -> None:
    DistilBertForTokenClassification.from_pretrained(tiny_model, num_labels=2).save_pretrained(folder)


def a_decoder(folder: Path, tiny_model: Path) -> None:
    size: dict[str, Any] = {"vocab_size": 600, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**size, intermediate_size=8, is_decoder=True)
    BertForSequenceClassification(config).save_pretrained(folder)


def not_a_number(folder: Path, tiny_model: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(folder: Path, tiny_model: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (without_config, "has no config.json"),
        (an_encoder, "has no trained classification head"),
        (one_class, "is a model of one class, or of numbers"),
        (several_labels, "is a model of several labels at once"),
        (a_tagger, "has no trained classification head"),
        (a_decoder, "is a bert model whose tokens see none after them"),
        (not_a_number, "gives logits that are not finite"),
        (cut_short, "its safetensors file is damaged"),
    ],
)
def test_other_models_are_refused(
    spoil: Callable[[Path, Path], None],
    expected: str,
    run: Run,
    tiny_classifier: Path,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(tiny_classifier, tmp_path / "model"))
    spoil(folder, tiny_model)
    code, out, said = run(folder, "fine", "--output", tmp_path / "answers.csv")
    assert (code, out, said.count("\n")) == (2, "", 1), said
    assert expected in said
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    def fill() -> None:
        with NewFile("--output", str(tmp_path / "answers.csv")) as file:
            for _ in range(100):
                file.write("x" * 1000)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(UserError, match=r"--output .*answers.csv cannot be written \(File too large\)") as caught:
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ".answers.csv.unfinished" in str(caught.value)
    assert not (tmp_path / "answers.csv").exists()


def test_a_file_that_appears_in_the_meantime_is_not_overwritten(tmp_path: Path) -> None:
    place = tmp_path / "answers.csv"

    def write() -> None:
        with NewFile("--output", str(place)) as file:
            file.write("mine")
            place.write_text("another's")

    with pytest.raises(UserError, match=r"is there already .* this one is in .*\.answers\.csv\.unfinished"):
        write()
    assert place.read_text() == "another's"
    assert (tmp_path / ".answers.csv.unfinished").read_text() == "mine"


def test_the_bar_is_for_terminals(
    run: Run, tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_sentences(tmp_path / "sentences.txt", SENTENCES)
    with terminal(2) as written, open(2, "w", encoding="utf-8", closefd=False) as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)  # pytest has put another one there
        code, out, _ = run(tiny_classifier, "--file", file)
    assert (code, len(out.splitlines())) == (0, len(SENTENCES))
    assert f"{len(SENTENCES)}/{len(SENTENCES)}" in written[0]


def test_a_mistake_is_answered_without_torch() -> None:
    code = (
        "import sys\nfrom sst2.inference.predict import command\n"
        "try: command.main(['nowhere', 'x', '--max_length', 'many'])\n"
        "except command.UserError: sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_a_file_is_written_where_standard_output_is_closed(tiny_classifier: Path, tmp_path: Path) -> None:
    command = ["bash", "-c", 'exec "$@" >&-', "bash", sys.executable, "-m", "sst2.predict", str(tiny_classifier)]
    command += ["good", "--output", str(tmp_path / "answers.csv")]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 2


@pytest.mark.slow
def test_somebody_who_types_is_answered_line_by_line(tiny_classifier: Path) -> None:
    controller, end = os.openpty()
    with subprocess.Popen(
        [*COMMAND, str(tiny_classifier)], stdin=end, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        for sentence in ("a gripping film", "a dull film"):
            os.write(controller, f"\n{sentence}\n".encode())  # an empty line is no sentence, and no mistake here
            assert process.stdout.readline().rstrip().endswith(sentence)
        os.write(controller, b"\x04")  # Ctrl-D
        assert process.wait(60) == 0
    os.close(end)
    os.close(controller)


@pytest.fixture
def hub(tiny_classifier: Path, tmp_path: Path) -> Iterator[HubServer]:
    shutil.copytree(tiny_classifier, tmp_path / "hub" / "models" / "somebody" / "sentiment")
    with HubServer(tmp_path / "hub") as server:
        yield server


def start(hub: HubServer, folder: Path, *flags: object) -> subprocess.Popen[str]:
    """The command in a process of its own that would reach the hub."""
    online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home")}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*COMMAND, *map(str, flags)], env=os.environ | online, cwd=folder, **pipes)


@pytest.mark.slow
def test_a_folder_asks_nobody_and_a_reader_that_goes_ends_it_quietly(
    hub: HubServer, tiny_classifier: Path, tmp_path: Path
) -> None:
    file = write_sentences(tmp_path / "sentences.txt", [f"film number {n}" for n in range(30_000)])
    process = start(hub, tmp_path, tiny_classifier, "--file", file)
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline().rstrip().endswith("film number 0")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141
    assert hub.requests == []


@pytest.mark.slow
def test_a_name_is_looked_for_on_the_hub(hub: HubServer, tmp_path: Path) -> None:
    out, said = start(hub, tmp_path, "somebody/sentiment", "a gripping film").communicate()
    assert out.rstrip().endswith("  a gripping film"), said
    assert any(request.endswith("/model.safetensors") for request in hub.requests)
