"""Runs side by side: which settings differ, what goes into a mean, and what is refused."""

import csv
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import ttest_ind

from sst2.cli.compare import PROGRAM, main
from sst2.config.arguments import write_settings
from sst2.config.settings import Settings
from sst2.evaluation.metrics import ClassificationMetric
from sst2.runs.run_folder import RunFolder
from sst2.utils.errors import exit_codes

Compare = Callable[..., tuple[int, str, str]]


def write_run(
    folder: Path,
    accuracy: float,
    finished: bool = True,
    sentences: int = 100,
    wrong: Iterable[int] | None = None,
    **settings: Any,
) -> Path:
    """A folder as a run leaves it, with a model that has the first sentences right, or all but those in `wrong`."""
    folder.mkdir(parents=True)
    write_settings(RunFolder(folder), Settings(output_dir=str(folder), smoke=True, **SAMPLE | settings))
    if not finished:
        return folder
    labels = np.arange(sentences) % 2
    right = np.arange(sentences) < round(accuracy * sentences)
    if wrong is not None:
        right = ~np.isin(np.arange(sentences), [*wrong])
    predicted = np.where(right, labels, 1 - labels)
    logits = np.stack([1.0 - predicted, predicted], axis=1)
    metrics = ClassificationMetric().compute(predictions=logits, references=labels, lengths=np.full(sentences, 5))
    metrics |= {"split": "validation", "step": 40, "sentences_per_second": 321.0, "selected": "the last one"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    names = ("negative", "positive")
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "row", "sentence", "label", "prediction", "probability_positive"])
        for row in range(sentences):
            writer.writerow(["validation", row, f"film, {row}", names[labels[row]], names[predicted[row]], "0.5"])
            writer.writerow(["test", row, f"other {row}", "", names[0], "0.5"])
    return folder


SAMPLE = {"model_name_or_path": "sample", "dataset_name": "sample"}


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Compare:
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = 0
        try:
            with exit_codes(PROGRAM):
                main([*map(str, arguments)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed, accuracies in ((1, (0.80, 0.90)), (2, (0.82, 0.91)), (3, (0.81, 0.92))):
        for rate, accuracy in zip((2e-5, 5e-5), accuracies, strict=True):
            write_run(tmp_path / "runs" / f"lr{rate:g}-seed{seed}", accuracy, learning_rate=rate, seed=seed)
    return tmp_path / "runs"


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_runs_that_differ_by_their_seed_alone_make_a_mean(compare: Compare, runs: Path) -> None:
    code, said, _ = compare(*sorted(runs.iterdir()))
    assert code == 0
    table = cells(said)
    assert table[0][:4] == ["run", "learning_rate", "seed", "accuracy"]  # what differs, and no folder
    assert [line[2] for line in table[2:8]] == ["1", "2", "3", "1", "2", "3"]
    assert table[2][3:5] == ["0.8000", "0.7112 to 0.8666"]  # Wilson, 80 of 100
    assert table[8][:3] == ["configuration", "runs", "accuracy"]
    assert table[10][:3] == ["learning_rate 2e-05", "3", "0.8100 ± 0.0100"]
    assert table[11][:3] == ["learning_rate 5e-05", "3", "0.9100 ± 0.0100"]
    assert table[11][3] == "0.8852 to 0.9348"  # 0.91 ± 4.303 * 0.01 / sqrt(3)
    assert "little more than a guess" in said


def test_a_baseline_is_tested_against_on_the_same_sentences(compare: Compare, runs: Path, tmp_path: Path) -> None:
    code, said, _ = compare(*sorted(runs.iterdir()), "--baseline", runs / "lr2e-05-seed1", "--output", tmp_path / "out")
    assert code == 0
    baseline, better = cells(said)[10:12]
    assert baseline[-3:] == ["baseline", "", ""]
    assert better[-3] == "+0.1000"
    assert better[-1].endswith("(Welch)")
    assert "Not corrected for the number of comparisons" in " ".join(said.split())
    assert (tmp_path / "out" / "comparison.md").read_text().strip() == said.strip()
    with (tmp_path / "out" / "runs.csv").open(newline="") as file:
        assert [row["accuracy"] for row in csv.DictReader(file)] == [line[3] for line in cells(said)[2:8]]
    with (tmp_path / "out" / "configurations.csv").open(newline="") as file:
        assert len([*csv.DictReader(file)]) == 2
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_one_run_against_one_is_mcnemars_test(compare: Compare, runs: Path) -> None:
    code, said, _ = compare(runs / "lr5e-05-seed1", "--baseline", runs / "lr2e-05-seed1")
    assert code == 0
    assert cells(said)[-1][-3:] == ["+0.1000", "+0.0500 to +0.1600", "0.00195 (McNemar)"]  # 10 of 10: 2 / 2**10
    assert [line[0] for line in cells(said)[2:4]] == [str(runs / "lr2e-05-seed1"), str(runs / "lr5e-05-seed1")]


def test_two_by_three_runs_give_what_is_computed_by_hand(compare: Compare, tmp_path: Path) -> None:
    # Sentences that the baseline and the other configuration have wrong, seed by seed, of 40.
    wrong = {1: ([0, 1, 2, 3, 4, 5, 6], [0]), 2: ([0, 1, 2, 3, 4], [0, 5]), 3: ([0, 1, 2, 3], [4, 5, 6, 7])}
    for seed, pair in wrong.items():
        for rate, own in zip((2e-5, 5e-5), pair, strict=True):
            write_run(tmp_path / f"{rate:g}-{seed}", 0, sentences=40, wrong=own, learning_rate=rate, seed=seed)
    folders = sorted(tmp_path.iterdir())
    code, said, _ = compare(*folders, "--baseline", tmp_path / "2e-05-1", "--output", tmp_path / "out")
    assert code == 0
    # McNemar: 6 against 0 of 6, 2 / 2**6; 4 against 1 of 5, 2 * (1 + 5) / 2**5; 4 against 4.
    pairs = [["6", "0", "0.0312"], ["4", "1", "0.375"], ["4", "4", "1"]]
    assert [line[1:] for line in cells(said)[-3:]] == [[str(seed), *pair] for seed, pair in enumerate(pairs, start=1)]
    with (tmp_path / "out" / "pairs.csv").open(newline="") as file:
        assert [[*row.values()][2:] for row in csv.DictReader(file)] == pairs
    # The bootstrap: each of 40 draws takes one of 40 gains, in thirds. The sum's distribution, exactly, by convolution.
    thirds = np.array([sum((s in a) - (s in b) for a, b in wrong.values()) for s in range(40)])
    one = np.bincount(thirds + 3, minlength=7) / 40
    total = np.ones(1)
    for _ in range(40):
        total = np.convolve(total, one)
    below = np.cumsum(total)
    low, high = ((int(np.searchsorted(below, share)) - 3 * 40) / 3 / 40 for share in (0.025, 0.975))
    better = cells(said)[11]
    assert better[-3:-1] == [f"{thirds.sum() / 3 / 40:+.4f}", f"{low:+.4f} to {high:+.4f}"]
    # Welch: accuracies 33, 35, 36 of 40 against 39, 38, 36.
    assert better[-1] == f"{ttest_ind([39, 38, 36], [33, 35, 36], equal_var=False).pvalue:.3g} (Welch)"


def test_names_of_the_classes_make_no_other_sentences(compare: Compare, runs: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "renamed", 0.9, learning_rate=5e-5, seed=1)
    config = other / "resolved.yaml"
    config.write_text(config.read_text().replace("- NEGATIVE", "- bad").replace("- POSITIVE", "- good"))
    predictions = other / "predictions.csv"
    predictions.write_text(predictions.read_text().replace("negative", "bad").replace("positive", "good"))
    code, said, _ = compare(other, "--baseline", runs / "lr2e-05-seed1")
    assert code == 0
    assert cells(said)[-1][-1].endswith("(McNemar)")
    assert "label_names" not in said


def test_what_has_not_finished_is_named_and_in_no_mean(compare: Compare, runs: Path) -> None:
    write_run(runs / "lr2e-05-seed4", 0, finished=False, learning_rate=2e-5, seed=4)
    code, said, _ = compare(*sorted(runs.iterdir()))
    assert code == 0
    assert ["lr2e-05-seed4" in line[0] and line[3] for line in cells(said)[2:9]].count("not finished") == 1
    assert cells(said)[-2][1] == "3"
    assert f"Not finished, and in no mean: {runs / 'lr2e-05-seed4'}" in said


def test_other_sentences_are_not_compared(compare: Compare, runs: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", 0.9, sentences=50, max_eval_samples=50)
    code, said, _ = compare(runs / "lr2e-05-seed1", other, "--baseline", runs / "lr2e-05-seed1")
    assert code == 0
    assert cells(said)[-1][-3] == "other sentences"


def test_settings_of_no_account_do_not_make_another_configuration(compare: Compare, runs: Path) -> None:
    for number, folder in enumerate(sorted(runs.iterdir())):
        settings = yaml.safe_load((folder / "resolved.yaml").read_text())
        settings |= {"logging_steps": number + 1, "gradient_accumulation_steps": number + 1}
        (folder / "resolved.yaml").write_text(yaml.safe_dump(settings))
    _, said, _ = compare(*sorted(runs.iterdir()))
    assert len(cells(said)) == 2 + 6 + 2 + 2


def test_what_is_missing_is_said(compare: Compare, runs: Path, tmp_path: Path) -> None:
    unfinished = write_run(tmp_path / "unfinished", 0, finished=False, weight_decay=0.1)
    run = runs / "lr2e-05-seed1"
    (tmp_path / "empty").mkdir()
    code, said, _ = compare(run, run, runs / ".." / "runs" / run.name, tmp_path / "empty", "--baseline", unfinished)
    assert code == 0
    assert f"No run there, or none that has begun: {tmp_path / 'empty'}." in said
    assert f"The baseline {unfinished} has not finished: nothing is tested." in said
    assert "difference" not in said
    assert [line[1] for line in cells(said)[-1:]] == ["1"]  # given three times, counted once


def test_a_run_of_an_earlier_version_ran_by_the_defaults(compare: Compare, runs: Path) -> None:
    run = RunFolder(runs / "lr2e-05-seed1")
    settings = [line for line in run.resolved.open() if not line.startswith(("stage_dir", "weight_decay"))]
    run.resolved.write_text("".join(settings))
    _, said, _ = compare(*sorted(runs.iterdir()))
    assert cells(said)[-2][1] == "3"


def test_a_run_whose_record_is_gone_is_refused(compare: Compare, runs: Path) -> None:
    place = RunFolder(runs / "lr2e-05-seed1")
    place.resolved.unlink()
    code, said, error = compare(*sorted(runs.iterdir()))
    assert (code, said, error.count("\n")) == (2, "", 1)
    assert f"{place.path} cannot be read (resolved.yaml is missing): leave it out, or run it again" in error


def test_a_bar_in_a_setting_does_not_end_its_cell(compare: Compare, tmp_path: Path) -> None:
    one, other = (write_run(tmp_path / name, 0.9, dataset_revision=name) for name in ("a|b", "c"))
    _, said, _ = compare(one, other)
    assert "| a\\|b " in said


def test_tables_are_whole_whatever_the_terminal_and_whatever_the_names(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    names = ("[bold]a", f"{'long-' * 40}name :smile:", "映画")
    runs = [write_run(tmp_path / str(n), 0.9, dataset_revision=name) for n, name in enumerate(names)]
    _, said, _ = compare(*runs)
    assert [line[1] for line in cells(said)[2:5]] == list(names)
    assert "\x1b" not in said


def test_mistakes_are_one_line(compare: Compare, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    run = runs / "lr2e-05-seed1"
    unfinished = write_run(tmp_path / "unfinished", 0, finished=False)
    shortened, damaged, list_ = (Path(shutil.copytree(run, tmp_path / name)) for name in ("short", "damaged", "list"))
    (shortened / "predictions.csv").write_text("split,row,sentence,label,prediction\n")
    (damaged / "metrics.json").write_text('{"split": "validation", "count": 100, "accuracy": 0.9}')
    (list_ / "metrics.json").write_text("[1]")
    mistakes = {
        (tmp_path / "empty",): "holds no run",
        (run, tmp_path / "typo"): "typo does not exist",
        (run, "--baseline", tmp_path / "empty"): "--baseline",
        (unfinished,): "none of 1 runs has finished",
        (shortened,): "predictions.csv has 0 sentences, metrics.json 100",
        (damaged,): "metrics.json lacks accuracy_ci95",
        (list_,): "cannot be read",
    }
    for arguments, message in mistakes.items():
        code, said, error = compare(*arguments)
        assert (code, said) == (2, "")
        assert error.count("\n") == 1
        assert message in error
    code, _, error = compare(run, "--output", tmp_path / "file")
    assert code == 2
    assert "--output" in error
