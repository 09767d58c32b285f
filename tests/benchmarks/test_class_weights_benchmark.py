"""Both ways train on the same sentences, and their difference is that of pairs of one seed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.class_weights import TRAIN, WORDS, differences, write_tsv
from tests.support.running import REPOSITORY


def test_the_difference_is_of_pairs() -> None:
    runs = {
        "balanced": [{"f1_macro": 0.9, "accuracy": 0.5}, {"f1_macro": 0.6, "accuracy": 0.5}],
        "none": [{"f1_macro": 0.7, "accuracy": 0.5}, {"f1_macro": 0.5, "accuracy": 0.6}],
    }
    found = differences(runs)["f1_macro"]
    assert found["mean"] == pytest.approx(0.15)
    assert found["ci95"] == pytest.approx([0.15 - 12.7062 * 0.05, 0.15 + 12.7062 * 0.05], abs=1e-4)


def test_sentences_of_each_class_are_as_many_as_asked_for(tmp_path: Path) -> None:
    assert TRAIN["sport"] / TRAIN["arts"] == 50
    rows = write_tsv(tmp_path / "a.tsv", {"sport": 5, "arts": 2}, seed=0).read_text().splitlines()[1:]
    labels = [row.split("\t")[1] for row in rows]
    assert (labels.count("sport"), labels.count("arts")) == (5, 2)
    for row in rows:
        sentence, label = row.split("\t")
        assert sum(word in WORDS[label].split() for word in sentence.split()) == 2


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    command = [sys.executable, REPOSITORY / "benchmarks/class_weights.py", "--seeds", 0, 1, "--scale", 0.05]
    command += ["--output", tmp_path / "a.json"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "a.json").read_text())
    assert [len(runs) for runs in figures["runs"].values()] == [2, 2]
    assert set(figures["balanced_minus_none"]) == {"f1_macro", "accuracy"}
