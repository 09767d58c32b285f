"""No text in a csv that is written here is a formula to a spreadsheet, and each is read back as it was."""

import csv
from pathlib import Path

import numpy as np
import pytest

from sst2.data.checked_rows import read_file
from sst2.data.csv_cells import from_cell, to_cell
from sst2.data.file_formats import Columns
from sst2.data.splits import Split
from sst2.evaluation.predictions import read_predictions, write_predictions
from sst2.evaluation.tables import Table
from sst2.inference.predict.command import main as predict
from sst2.inference.predict.formatters import Answer, answer_writer
from sst2.inference.predict.inputs import sentences_of
from tests.support.datasets import content_of

FORMULAS = ['=HYPERLINK("http://x")', "+1 for this film", "-lrb- sic -rrb-", "@cast", "\t=1+1", "\r=1", "\uff1d1"]
TEXTS = [*FORMULAS, *(f"'{text}" for text in FORMULAS), "''=1", "'tis fine", "'", "''", "a=b", " =1", "-5", "+0.25"]


def test_texts_survive_and_none_begins_as_a_formula_does() -> None:
    assert [from_cell(to_cell(text)) for text in TEXTS] == TEXTS
    assert all(to_cell(text).startswith("'") for text in FORMULAS)
    assert [to_cell(text) for text in TEXTS[-7:]] == TEXTS[-7:]  # nothing is done to texts and numbers


def test_predictions_are_safe_to_open_and_read_back_whole(tmp_path: Path) -> None:
    texts = [*TEXTS, "x" * 200_000]  # longer than the 131,072 characters that csv takes unless told otherwise
    count = len(texts)
    ids, offsets = np.zeros(count, np.int32), np.arange(count + 1)
    split = Split("validation", texts, np.array([0, 1, -1] * count)[:count], ids, offsets, ("-", "=1"))
    write_predictions(tmp_path / "predictions.csv", [(split, np.eye(2)[[0, 1] * count][:count])])
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in "=@\t\r\uff1d" and cell]
    rows = read_predictions(tmp_path / "predictions.csv", "validation")
    assert [row["sentence"] for row in rows] == texts
    assert [row["label"] for row in rows][:3] == ["-", "=1", ""]
    assert [row["prediction"] for row in rows][:2] == ["-", "=1"]


def test_answers_and_comparisons_are_safe_too() -> None:
    class Written:
        text = ""

        def write(self, text: str) -> None:
            self.text += text

    written = Written()
    write = answer_writer("csv", written, ("=A", "B"), explained=False, color=False)  # type: ignore[arg-type]
    write(Answer("@cast", [0.9, 0.1], 0))
    assert written.text.splitlines()[1] == "'=A,0.100000,'@cast"
    records: list[dict[str, object]] = [{"run": "=cmd", "difference": -0.01}, {"run": "+1", "difference": None}]
    assert Table(records, []).csv() == "run,difference\n'=cmd,-0.01\n+1,\n"


def test_what_a_run_and_predict_have_written_is_read_as_it_was(tmp_path: Path, tiny_classifier: Path) -> None:
    texts = [text for text in TEXTS if "\n" not in text and "\r" not in text]  # which would end a line of txt
    (tmp_path / "a.txt").write_text("".join(f"{text}\n" for text in texts))
    for source, target in (("a.txt", "a1.csv"), ("a1.csv", "a2.csv")):
        predict([str(tiny_classifier), "--file", str(tmp_path / source), "--output", str(tmp_path / target)])
    assert (tmp_path / "a2.csv").read_bytes() == (tmp_path / "a1.csv").read_bytes()
    assert [*sentences_of([], str(tmp_path / "a2.csv"))] == texts
    count = len(texts)
    split = Split("validation", texts, np.ones(count, np.int64), np.zeros(0), np.zeros(0), ("-", "=1"))
    write_predictions(tmp_path / "predictions.csv", [(split, np.eye(2)[[0] * count])])
    data = read_file(str(tmp_path / "predictions.csv"), True, Columns(label_names=("-", "=1")))
    assert content_of(data) == (texts, [1] * count)


def test_an_apostrophe_in_a_file_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sentence,label\n'-lrb- sic,1\n")
    assert list(read_file(str(tmp_path / "a.csv"), True)["sentence"]) == ["'-lrb- sic"]


@pytest.mark.parametrize("text", ["", "0.5", "fine film"])
def test_others_are_left_alone(text: str) -> None:
    assert to_cell(text) == from_cell(text) == text
