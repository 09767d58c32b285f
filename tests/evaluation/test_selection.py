"""The median of other runs: which of them count, and from how many on."""

import json
from pathlib import Path
from typing import Any

import pytest

from sst2.evaluation.selection import median_of_others, score_of


def write_log(folder: Path, *points: dict[str, Any], end: str = "") -> None:
    folder.mkdir(parents=True)
    text = "".join(json.dumps({"split": "validation", "loss": 0.5} | point) + "\n" for point in points)
    (folder / "metrics.jsonl").write_text(text + end)


def test_the_median_is_that_of_other_runs_at_the_very_step(tmp_path: Path) -> None:
    for number, accuracy in enumerate((0.5, 0.6, 0.7, 0.8, 0.9)):
        write_log(tmp_path / str(number), {"step": 10, "accuracy": accuracy}, {"step": 20, "accuracy": 0.99})
    write_log(tmp_path / "early", {"step": 5, "accuracy": 0.1}, {"split": "train", "step": 10})
    write_log(tmp_path / "cut", {"step": 10, "accuracy": None}, end='{"split": "validation", "step": 10, "accu')
    (tmp_path / "empty").mkdir()
    write_log(tmp_path / "own", {"step": 10, "accuracy": 0.1})
    assert median_of_others(tmp_path, tmp_path / "own", "validation", 10, "accuracy") == pytest.approx(0.7)
    assert median_of_others(tmp_path, tmp_path / "own", "holdout", 10, "accuracy") is None
    assert median_of_others(tmp_path, tmp_path / "4", "validation", 10, "accuracy") == pytest.approx(0.6)  # with own
    assert median_of_others(tmp_path, tmp_path / "own", "validation", 10, "loss") == pytest.approx(-0.5)


def test_fewer_than_five_have_no_median(tmp_path: Path) -> None:
    for number in range(5):
        write_log(tmp_path / str(number), {"step": 10, "accuracy": 0.5})
    assert median_of_others(tmp_path, tmp_path / "0", "validation", 10, "accuracy") is None
    assert median_of_others(tmp_path, tmp_path / "another", "validation", 10, "accuracy") == 0.5


def test_a_lower_loss_is_worth_more() -> None:
    assert score_of({"loss": 0.2}, "loss") > score_of({"loss": 0.3}, "loss")
    assert score_of({"accuracy": 0.2}, "accuracy") < score_of({"accuracy": 0.3}, "accuracy")
