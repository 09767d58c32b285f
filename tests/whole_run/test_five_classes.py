"""Five classes named by words, fifty to one, from a csv: trained, evaluated, predicted, exported, compared."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.metrics import f1_score
from transformers import pipeline

from benchmarks.class_weights import WORDS
from sst2.cli.compare import main as compare
from sst2.inference.onnx_export.command import main as export
from sst2.inference.predict.command import main as predict
from tests.support.jobs import results
from tests.support.ranks import run_to_the_end
from tests.support.running import Finished
from tests.support.topics import topic_flags, write_csv

NAMES = sorted(WORDS)
COLUMNS = ["split", "row", "sentence", "label", "prediction", *(f"probability_{name}" for name in NAMES)]
RECIPE = "--learning_rate 3e-3 --num_train_epochs 6 --eval_steps 12 --logging_steps 6 --log_sample_ids".split()
WEIGHTED = "--class_weights balanced --label_smoothing 0.05 --metric_for_best_model f1_macro".split()
ONE_MORE = "--load_best_model_at_end --checkpointing_steps 12 --checkpoints_total_limit 9".split()


@pytest.fixture(scope="module")
def flags(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    return ["--model_name_or_path", tiny_model, *topic_flags(tmp_path_factory.mktemp("topics")), *RECIPE]


@pytest.fixture(scope="module")
def weighted(flags: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with weights of classes, on one process."""
    folder = tmp_path_factory.mktemp("weighted") / "run"
    run_to_the_end([*flags, *WEIGHTED, *ONE_MORE], folder)
    return folder


def predictions_of(run: Path, split: str) -> list[dict[str, str]]:
    with (run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == COLUMNS
        return [row for row in reader if row["split"] == split]


def test_what_a_run_leaves_behind(weighted: Path) -> None:
    metrics = json.loads((weighted / "metrics.json").read_text())
    rows = predictions_of(weighted, "validation")
    truth, predicted = ([row[column] for row in rows] for column in ("label", "prediction"))
    assert metrics["count"] == len(rows) == 80
    assert metrics["accuracy"] == np.mean([one == other for one, other in zip(truth, predicted, strict=True)])
    assert metrics["f1_macro"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert metrics["accuracy"] > 0.8  # of which the most frequent class alone is a half
    assert [*metrics["per_class"]] == NAMES
    assert metrics["selected"].startswith("the one of the highest macro F1 on the validation split")
    for row in rows:
        probabilities = [float(row[f"probability_{name}"]) for name in NAMES]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert NAMES[int(np.argmax(probabilities))] == row["prediction"]
    test = predictions_of(weighted, "test")
    assert (len(test), {row["label"] for row in test}) == (20, {""})
    assert yaml.safe_load((weighted / "resolved.yaml").read_text())["label_names"] == NAMES
    assert "label_names" not in (weighted / "config.yaml").read_text()
    card = (weighted / "model" / "README.md").read_text()
    assert "sentences of 5 classes: arts, business, politics, science or sport" in card
    assert "| f1_macro | " in card
    assert "| class_weights | balanced |" in card
    assert f"| sport | {metrics['per_class']['sport']['precision']:.4f} |" in card
    log = (weighted / "train.log").read_text()
    assert "f1_macro" in log
    best = max(json.loads(line).get("f1_macro", 0) for line in (weighted / "metrics.jsonl").read_text().splitlines())
    assert metrics["f1_macro"] == best


def test_the_model_is_a_stock_one_that_answers_by_the_names(weighted: Path) -> None:
    rows = predictions_of(weighted, "test")
    answers: Any = pipeline("text-classification", str(weighted / "model"))([row["sentence"] for row in rows])
    assert [answer["label"] for answer in answers] == [row["prediction"] for row in rows]


def test_it_predicts_in_every_format(weighted: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = predictions_of(weighted, "test")
    words = [row["sentence"] for row in rows]
    predict([str(weighted), *words, "--output", str(tmp_path / "answers.csv")])
    with (tmp_path / "answers.csv").open(newline="") as file:
        answers = list(csv.DictReader(file))
    assert [*answers[0]] == ["prediction", *COLUMNS[5:], "sentence"]
    predict([str(weighted), *words, "--format", "jsonl"])
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    for row, answer, line in zip(rows, answers, lines, strict=True):
        assert row["prediction"] == answer["prediction"] == line["prediction"]
        assert [float(answer[name]) for name in COLUMNS[5:]] == [line[name] for name in COLUMNS[5:]]
        assert [line[name] for name in COLUMNS[5:]] == pytest.approx([float(row[n]) for n in COLUMNS[5:]], abs=1e-5)
    predict([str(weighted), *words, "--top_k", "2", "--output", str(tmp_path / "two.csv")])
    predict([str(weighted), *words, "--top_k", "2", "--format", "jsonl"])
    predict([str(weighted), words[0], "--top_k", "2"])
    *lines, text = capfd.readouterr().out.splitlines()
    with (tmp_path / "two.csv").open(newline="") as file:
        header, first, *_ = csv.reader(file)
    assert header == ["prediction", "class_1", "probability_1", "class_2", "probability_2", "sentence"]
    by_probability = sorted(NAMES, key=lambda name: -float(rows[0][f"probability_{name}"]))
    assert [first[1], first[3]] == by_probability[:2]
    assert [name for name, _ in json.loads(lines[0])["top_k"]] == by_probability[:2]
    assert text.split()[0::2][:2] == by_probability[:2]
    assert text.endswith(f"  {words[0]}")


def test_words_are_explained_for_the_class_that_is_asked_for(
    weighted: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "why.html"
    flags = ["goal goal vote vote", "--explain", "--format", "jsonl"]
    predict([str(weighted), *flags, "--explain_class", "sport", "--html", str(page)])
    predict([str(weighted), *flags, "--explain_class", "POLITICS"])
    sport, politics = (dict(json.loads(line)["attributions"]) for line in capfd.readouterr().out.splitlines())
    assert sport["goal"] > sport["vote"]
    assert politics["vote"] > politics["goal"]
    assert "for</span> the class sport and" in page.read_text()


def test_mistakes_of_predict_are_one_line(weighted: Path) -> None:
    from sst2.utils.errors import UserError

    for flags, message in {
        ("--explain", "--explain_class", "film"): "--explain_class film: the model has the classes arts, business,",
        ("--explain_class", "arts"): "--explain_class needs --explain beside it",
        ("--top_k", "6"): "--top_k 6 cannot work: the model has 5 classes",
        ("--top_k", "0"): "--top_k 0 cannot work: give at least 1",
    }.items():
        with pytest.raises(UserError, match=message):
            predict([str(weighted), "goal", *flags])


def test_it_is_exported_with_its_figures(weighted: Path, flags: list[object], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    validation = str(flags[flags.index("--validation_file") + 1])
    export([str(weighted), "--validation_file", validation, "--output_dir", str(tmp_path / "onnx")])
    report = json.loads((tmp_path / "onnx" / "export.json").read_text())
    metrics = json.loads((weighted / "metrics.json").read_text())
    assert report["labels"] == NAMES
    for form in report["forms"].values():
        assert {name: form[name] for name in ("accuracy", "f1_macro", "count")} == pytest.approx(
            {name: metrics[name] for name in ("accuracy", "f1_macro", "count")}
        )
    card = (tmp_path / "onnx" / "README.md").read_text()
    assert "arts, business, politics, science and sport" in card
    assert "(sentences, 5)" in card


def test_it_is_compared_with_a_run_without_weights(
    weighted: Path, flags: list[object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_to_the_end([*flags, "--max_train_steps", 12], tmp_path / "plain")
    capfd.readouterr()
    plain, output = str(tmp_path / "plain"), tmp_path / "comparison"
    compare([str(weighted), plain, "--baseline", plain, "--output", str(output)])
    assert "(McNemar)" in capfd.readouterr().out
    header = (output / "runs.csv").read_text().splitlines()[0].split(",")
    assert {"f1_macro", "class_weights"} <= {*header}


def test_a_run_is_resumed_as_if_it_had_not_stopped(weighted: Path, flags: list[object], tmp_path: Path) -> None:
    stopped = Path(shutil.copytree(weighted, tmp_path / "run"))
    for later in sorted((stopped / "checkpoints").iterdir())[2:]:  # what a kill after 30 steps would have left
        shutil.rmtree(later)
    assert run_to_the_end([*flags, *WEIGHTED, *ONE_MORE], stopped) == results(weighted)
    assert "resuming from" in (stopped / "train.log").read_text()


def test_the_logged_loss_is_the_weighted_mean(
    flags: list[object], tmp_path: Path, train_here: Callable[..., Finished]
) -> None:
    few = [*flags, "--max_train_steps", 4, "--logging_steps", 2, "--dropout", 0]
    plain = train_here(*few, run_dir=tmp_path / "plain")
    alike = train_here(*few, "--class_weights", *[7] * 5, run_dir=tmp_path / "alike")  # of which no mean depends
    losses = [[line["loss"] for line in run.logged("train")] for run in (plain, alike)]
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_classes_and_loss_are_fixed_when_a_run_goes_on(
    weighted: Path, flags: list[object], tmp_path: Path, train_here: Callable[..., Finished]
) -> None:
    given = [*flags, *ONE_MORE, "--resume_from_checkpoint", "auto"]
    for changed, message in {
        " ".join(WEIGHTED[2:]): "--class_weights is none but",
        f"{' '.join(WEIGHTED)} --label_smoothing 0.2": "--label_smoothing is 0.2 but",
        f"{' '.join(WEIGHTED)} --metric_for_best_model loss": "--metric_for_best_model is loss but",
        f"{' '.join(WEIGHTED)} --label_names {' '.join(NAMES[::-1])}": "--label_names is sport science politics busin",
    }.items():
        refused = train_here(*given, *changed.split(), run_dir=weighted)
        assert refused.code == 2
        assert message in refused.stderr
    three = write_csv(tmp_path / "other.csv", [("goal", "sport"), ("vote", "politics"), ("atom", "science")])
    other = train_here(*given, *WEIGHTED, "--train_file", three, "--validation_file", three, run_dir=weighted)
    assert other.code == 2
    assert "--label_names is politics science sport but" in other.stderr


def test_one_wrong_label_is_named_by_its_row(
    flags: list[object], tmp_path: Path, train_here: Callable[..., Finished]
) -> None:
    file = write_csv(tmp_path / "dev.csv", [("goal", "sport"), ("vote", "polotics")])
    run = train_here(*flags, "--validation_file", file)
    assert run.code == 2
    assert f"{file} line 3: label 'polotics' is unknown: give arts, business, politics, science or sport" in run.stderr
    named = train_here(*flags, "--label_names", *NAMES[:4])
    assert named.code == 2
    assert "label 'sport' is unknown: give 0 or arts, 1 or business, 2 or politics, 3 or science, or" in named.stderr
    assert not run.run_dir.exists()


@pytest.mark.slow
def test_two_processes_train_like_one(flags: list[object], tmp_path: Path) -> None:
    exact = [*flags, *WEIGHTED, "--dropout", 0, "--global_batch_size", 37, "--per_device_train_batch_size", 10]
    one = run_to_the_end(exact, tmp_path / "one")
    two = run_to_the_end(exact, tmp_path / "two", processes=2)
    assert one["sample_ids"] == two["sample_ids"]
    for mine, theirs in zip(one["curves"][:4], two["curves"][:4], strict=True):
        assert mine.get("loss") == pytest.approx(theirs.get("loss"), rel=1e-4)
        assert mine.get("grad_norm", 0) == pytest.approx(theirs.get("grad_norm", 0), rel=1e-3)
    assert two["metrics"]["count"] == 80
    assert len(predictions_of(tmp_path / "two", "validation")) == 80
