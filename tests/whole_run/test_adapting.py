"""Other sentences, other names of columns and classes, other checkpoints: by flags alone."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import pipeline

from sst2.data.checked_rows import read_dataset, read_file
from sst2.data.file_formats import Columns
from sst2.data.sample import Split, sample_sentences
from sst2.inference.predict.inputs import sentences_of
from sst2.utils.errors import UserError
from tests.support.datasets import content_of
from tests.support.running import Finished

HAM = Columns("text", "verdict", ("ham", "spam"))


def test_columns_and_classes_have_the_names_that_they_are_given(tmp_path: Path) -> None:
    file = tmp_path / "mails.csv"
    file.write_text("verdict,label,text\nham,7,hello\nSPAM ,7,buy\n0,7,bye\n1,7,now\n")
    assert content_of(read_file(str(file), True, HAM)) == (["hello", "buy", "bye", "now"], [0, 1, 0, 1])
    records = file.with_suffix(".jsonl")
    records.write_text("".join(json.dumps({"text": t, "verdict": v}) + "\n" for t, v in (("hello", "ham"), ("buy", 1))))
    assert read_file(str(records), True, HAM)["label"][:] == [0, 1]
    named = datasets.Dataset.from_dict({"text": ["hello", "buy"], "verdict": [1, 0]})
    named = named.cast_column("verdict", datasets.ClassLabel(names=["spam", "ham"]))  # the other way round
    assert read_dataset(named, "mails train", True, HAM)["label"][:] == [0, 1]


def test_sentences_to_classify_may_stand_in_any_column(tmp_path: Path) -> None:
    file = tmp_path / "mails.csv"
    file.write_text("label,text\nmonday,hello\nfriday,bye\n")
    assert [*sentences_of([], str(file), "text")] == ["hello", "bye"]
    assert [*sentences_of([], str(file), "label")] == ["monday", "friday"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_classes_that_are_numbers_mean_what_the_flag_says(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"stars{suffix}"
    rows = [("poor", 1), ("great", 5), ("so so", 1)]
    if suffix == ".csv":
        file.write_text("sentence,label\n" + "".join(f"{text},{stars}\n" for text, stars in rows))
    else:
        file.write_text("".join(json.dumps({"sentence": text, "label": stars}) + "\n" for text, stars in rows))
    columns = Columns(label_names=("1", "5"))
    whole = tmp_path / "whole.parquet"
    datasets.Dataset.from_dict({"sentence": ["poor", "great"], "label": [1.0, 5.0]}).to_parquet(whole)
    assert read_file(str(whole), True, columns)["label"][:] == [0, 1]
    assert read_file(str(file), True, columns)["label"][:] == [0, 1, 0]
    with file.open("a") as stream:
        stream.write("bad,0\n" if suffix == ".csv" else '{"sentence": "bad", "label": 0}\n')
    with pytest.raises(UserError, match=r"label '?0'? is unknown: give 1 or 5"):
        read_file(str(file), True, columns)


def write_mails(file: Path, split: Split, count: int) -> Path:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text", "verdict"])
        for number, (text, label) in enumerate(zip(*sample_sentences(split), strict=True)):
            if number < count:
                writer.writerow([number, text, ("ham", "spam")[label]])
    return file


def test_a_file_of_ones_own_is_a_matter_of_flags(
    train_here: Callable[..., Finished], tiny_model: Path, tmp_path: Path
) -> None:
    flags: list[Any] = ["--model_name_or_path", tiny_model, "--sentence_column", "text", "--label_column", "verdict"]
    flags += ["--train_file", write_mails(tmp_path / "train.csv", "train", 300), "--label_names", "ham", "spam"]
    flags += ["--validation_file", write_mails(tmp_path / "dev.csv", "validation", 70), "--num_train_epochs", 1]
    run = train_here(*flags)
    assert run.code == 0, run.stderr
    with (run.run_dir / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {row["prediction"] for row in rows} | {"ham", "spam"} == {"ham", "spam"}
    assert sum(row["label"] == row["prediction"] for row in rows) / 70 == pytest.approx(run.metrics["accuracy"])
    assert pipeline("text-classification", str(run.run_dir / "model"))("dull")[0]["label"] in ("ham", "spam")
    card = (run.run_dir / "model" / "README.md").read_text()
    assert "sentences of two classes: ham or spam" in card
    assert "sst2" not in card
    accuracy = run.metrics["accuracy"]
    other = ("--label_names", "spam", "ham", "--resume_from_checkpoint", "auto")
    renamed = train_here("--config", run.run_dir / "config.yaml", *other)
    assert renamed.code == 2
    assert "--label_names is spam ham but" in renamed.stderr
    assert "give --label_names ham spam" in renamed.stderr
    again = train_here("--config", run.run_dir / "config.yaml", "--overwrite_output_dir")
    assert again.code == 0, again.stderr  # names come back out of a run's own record
    assert again.metrics["accuracy"] == accuracy
