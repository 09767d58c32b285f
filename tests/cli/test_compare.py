"""Runs side by side: which settings differ, what goes into a mean, what is tested, what terminal and files get."""

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.image import imread
from scipy import stats

from sst2.cli.compare import PROGRAM, main
from sst2.config.arguments import write_settings
from sst2.config.settings import Settings
from sst2.evaluation.metrics import ClassificationMetric
from sst2.runs.run_folder import RunFolder
from sst2.utils.errors import exit_codes

Compare = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def width_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever terminal, or none, the tests run in."""
    monkeypatch.setenv("COLUMNS", "120")


def write_run(
    folder: Path,
    accuracy: float,
    finished: bool = True,
    sentences: int = 100,
    wrong: Iterable[int] | None = None,
    split: str = "validation",
    film: str = "film",
    resolved: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A folder as a run leaves it, with a model that has the first sentences right, or all but those in `wrong`.

    The `settings` are those that it was given; in `resolved`, what it has worked out.
    """
    folder.mkdir(parents=True)
    values = Settings(output_dir=str(folder), smoke=True, **SAMPLE | settings, given=SAMPLE | settings)
    for name, value in ({"max_train_steps": 40, "num_warmup_steps": 3} | settings | (resolved or {})).items():
        setattr(values, name, value)
    write_settings(RunFolder(folder), values)
    if not finished:
        return folder
    labels = np.arange(sentences) % 2
    right = np.arange(sentences) < round(accuracy * sentences)
    if wrong is not None:
        right = ~np.isin(np.arange(sentences), [*wrong])
    predicted = np.where(right, labels, 1 - labels)
    logits = np.stack([1.0 - predicted, predicted], axis=1)
    metrics = ClassificationMetric().compute(predictions=logits, references=labels, lengths=np.full(sentences, 5))
    metrics |= {"split": split, "step": 40, "sentences_per_second": 321.0, "selected": "the last one"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    names = ("negative", "positive")
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "row", "sentence", "label", "prediction", "probability_positive"])
        for row in range(sentences):
            writer.writerow([split, row, f"{film}, {row}", names[labels[row]], names[predicted[row]], "0.5"])
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


def read(folder: Path, name: str) -> list[dict[str, str]]:
    """The lines of a table as csv."""
    with (folder / f"{name}.csv").open(newline="") as file:
        return [*csv.DictReader(file)]


def numbers(line: dict[str, str], *names: str) -> list[float]:
    return [float(line[name]) for name in names]


def tables_of(said: str) -> list[list[list[str]]]:
    """The words of each line of each table on a terminal: below the dashes, up to an empty line."""
    tables = re.findall(r"^[- ]*---[- ]*\n((?:.+\n)+)", said, re.MULTILINE)
    return [[line.split() for line in table.splitlines()] for table in tables]


def test_runs_that_differ_by_their_seed_alone_make_a_mean(compare: Compare, runs: Path, tmp_path: Path) -> None:
    code, said, _ = compare(*sorted(runs.iterdir()), "--output", tmp_path / "out")
    assert code == 0
    assert f"Runs in {runs}:" in said
    assert tables_of(said)[0][0] == "lr2e-05-seed1 1 2e-05 1 0.8000 0.7112 to 0.8666 0.8000 0.5133 40 321".split()
    each = read(tmp_path / "out", "runs")
    assert [*each[0]][:6] == ["run", "configuration", "learning_rate", "seed", "status", "step"]  # and no folder
    assert [line["seed"] for line in each] == ["1", "2", "3", "1", "2", "3"]
    assert numbers(each[0], "accuracy_low", "accuracy_high") == pytest.approx([0.7112, 0.8666], abs=1e-4)  # Wilson
    means = read(tmp_path / "out", "configurations")
    assert [line["settings"] for line in means] == ["learning_rate 2e-05", "learning_rate 5e-05"]
    figures = ("seeds", "runs", "accuracy_mean", "accuracy_std", "accuracy_low", "accuracy_high")
    half = 4.303 * 0.01 / np.sqrt(3)  # Student's t with 2 degrees of freedom
    assert numbers(means[1], *figures) == pytest.approx([3, 3, 0.91, 0.01, 0.91 - half, 0.91 + half], abs=1e-4)
    assert "0.9100 ± 0.0100  0.8852 to 0.9348" in said
    assert "little more than a guess" in said


def test_repeats_of_a_seed_are_averaged_first(compare: Compare, tmp_path: Path) -> None:
    accuracies = {"a": (1, 0.80), "b": (1, 0.82), "c": (1, 0.90), "d": (2, 0.90), "e": (3, 0.86)}
    for name, (seed, accuracy) in accuracies.items():
        write_run(tmp_path / name, accuracy, seed=seed)
    write_run(tmp_path / "one", 0.80, seed=1, weight_decay=0.1)
    code, said, _ = compare(*map(tmp_path.joinpath, "abcde"), tmp_path / "one", "--output", tmp_path / "out")
    assert code == 0
    several, one = read(tmp_path / "out", "configurations")
    of_seeds = [0.84, 0.90, 0.86]
    expected = [3, 5, np.mean(of_seeds), np.std(of_seeds, ddof=1)]
    assert numbers(several, "seeds", "runs", "accuracy_mean", "accuracy_std") == pytest.approx(expected)
    assert [one[name] for name in ("seeds", "accuracy_std", "accuracy_low", "accuracy_high")] == ["1", "", "", ""]
    assert "these repeats are averaged first, and count as one" in said
    # Against a baseline they count as one as well: Welch's test of three seeds, and not of five runs.
    for seed, accuracy in ((1, 0.70), (2, 0.76)):
        write_run(tmp_path / f"base{seed}", accuracy, seed=seed, weight_decay=0.2)
    bases = [tmp_path / "base1", tmp_path / "base2"]
    compare(*map(tmp_path.joinpath, "abcde"), *bases, "--baseline", bases[0], "--output", tmp_path / "out")
    several = read(tmp_path / "out", "configurations")[0]
    p_value = stats.ttest_ind(of_seeds, [0.70, 0.76], equal_var=False).pvalue
    assert several["test"] == "Welch"
    assert numbers(several, "difference", "p_value") == pytest.approx([np.mean(of_seeds) - 0.73, p_value])
    # One seed with repeats against one run is no test of two models.
    compare(
        *map(tmp_path.joinpath, "abc"), tmp_path / "one", "--baseline", tmp_path / "one", "--output", tmp_path / "out"
    )
    assert read(tmp_path / "out", "configurations")[0]["test"] == "bootstrap"


def test_what_follows_from_a_difference_is_no_other_one(compare: Compare, tmp_path: Path) -> None:
    steps = {"max_train_steps": 80, "num_warmup_steps": 5}
    short = write_run(tmp_path / "short", 0.8, num_train_epochs=1.0)
    long = write_run(tmp_path / "long", 0.9, num_train_epochs=2.0, resolved=steps)
    padded = write_run(tmp_path / "padded", 0.9, num_train_epochs=2.0, resolved=steps | {"batching": "padded"}, seed=7)
    _, said, _ = compare(short, long, padded, "--output", tmp_path / "out")
    assert [line["settings"] for line in read(tmp_path / "out", "configurations")] == [
        "num_train_epochs 1",
        "num_train_epochs 2",
    ]
    assert "max_train_steps" not in said
    # Where a run was told its number of steps, all are compared by theirs: as many are the same, however they came.
    told = write_run(tmp_path / "told", 0.9, max_train_steps=80, num_train_epochs=50.0, resolved=steps, seed=8)
    compare(short, long, told, "--output", tmp_path / "out")
    assert [line["settings"] for line in read(tmp_path / "out", "configurations")] == [
        "max_train_steps 40",
        "max_train_steps 80",
    ]
    asked = write_run(tmp_path / "asked", 0.9, num_train_epochs=2.0, batching="padded", resolved=steps)
    compare(short, long, asked, "--output", tmp_path / "out")
    assert "batching padded" in read(tmp_path / "out", "configurations")[2]["settings"]


def test_a_baseline_is_tested_against_on_the_same_sentences(compare: Compare, runs: Path, tmp_path: Path) -> None:
    code, said, _ = compare(*sorted(runs.iterdir()), "--baseline", runs / "lr2e-05-seed1", "--output", tmp_path / "out")
    assert code == 0
    baseline, better = read(tmp_path / "out", "configurations")
    names = ("difference", "difference_low", "difference_high", "p_value")
    assert [baseline[name] for name in (*names, "test")] == ["", "", "", "", "baseline"]
    assert numbers(better, "difference") == pytest.approx([0.1])
    assert better["test"] == "Welch"
    assert "not corrected for the number of comparisons" not in said  # there is but one
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    write_run(runs / "lr3e-05-seed1", 0.85, learning_rate=3e-5, seed=1)
    _, said, _ = compare(*sorted(runs.iterdir()), "--baseline", runs / "lr2e-05-seed1")
    assert "not corrected for the number of comparisons" in said


def test_one_run_against_one_is_mcnemars_test(compare: Compare, runs: Path) -> None:
    code, said, _ = compare(runs / "lr5e-05-seed1", "--baseline", runs / "lr2e-05-seed1")
    assert code == 0
    assert tables_of(said)[-1][-1][-5:] == ["+0.1000", "+0.0500", "to", "+0.1600", "0.00195"]  # 2 / 2**10
    assert "p (McNemar)" in said
    assert [line[0] for line in tables_of(said)[0]] == ["lr2e-05-seed1", "lr5e-05-seed1"]


def test_two_by_three_runs_give_what_is_computed_by_hand(compare: Compare, tmp_path: Path) -> None:
    # Sentences that the baseline and the other configuration have wrong, seed by seed, of 40.
    wrong = {1: ([0, 1, 2, 3, 4, 5, 6], [0]), 2: ([0, 1, 2, 3, 4], [0, 5]), 3: ([0, 1, 2, 3], [4, 5, 6, 7])}
    for seed, pair in wrong.items():
        for rate, own in zip((2e-5, 5e-5), pair, strict=True):
            write_run(tmp_path / f"{rate:g}-{seed}", 0, sentences=40, wrong=own, learning_rate=rate, seed=seed)
    folders = sorted(tmp_path.iterdir())
    code, _, _ = compare(*folders, "--baseline", tmp_path / "2e-05-1", "--output", tmp_path / "out")
    assert code == 0
    # McNemar: 6 against 0 of 6, 2 / 2**6; 4 against 1 of 5, 2 * (1 + 5) / 2**5; 4 against 4.
    names = ("seed", "right_here_alone", "right_in_baseline_alone", "p_value")
    pairs = [numbers(line, *names) for line in read(tmp_path / "out", "pairs")]
    assert pairs == pytest.approx(np.array([[1, 6, 0, 0.03125], [2, 4, 1, 0.375], [3, 4, 4, 1]]))
    # The bootstrap: each of 40 draws takes one of 40 gains, in thirds. The sum's distribution, exactly, by convolution.
    thirds = np.array([sum((s in a) - (s in b) for a, b in wrong.values()) for s in range(40)])
    one = np.bincount(thirds + 3, minlength=7) / 40
    total = np.ones(1)
    for _ in range(40):
        total = np.convolve(total, one)
    below = np.cumsum(total)
    low, high = ((int(np.searchsorted(below, share)) - 3 * 40) / 3 / 40 for share in (0.025, 0.975))
    better = read(tmp_path / "out", "configurations")[1]
    difference = numbers(better, "difference", "difference_low", "difference_high")
    assert difference == pytest.approx([thirds.sum() / 3 / 40, low, high])
    # Welch: accuracies 33, 35, 36 of 40 against 39, 38, 36.
    assert float(better["p_value"]) == pytest.approx(
        stats.ttest_ind([39, 38, 36], [33, 35, 36], equal_var=False).pvalue
    )


def test_seeds_that_hold_out_sentences_of_their_own_are_compared_as_pairs(compare: Compare, tmp_path: Path) -> None:
    for seed, pair in {1: (0.80, 0.86), 2: (0.70, 0.78), 3: (0.90, 0.92), 4: (0.75, 0.76)}.items():
        for rate, accuracy in zip((2e-5, 5e-5), pair, strict=True):
            own: dict[str, Any] = {"split": "holdout", "film": f"film of seed {seed}", "holdout_fraction": 0.1}
            write_run(tmp_path / f"{rate:g}-{seed}", accuracy, learning_rate=rate, seed=seed, **own)
    one_seed = [tmp_path / "5e-05-4", "--baseline", tmp_path / "2e-05-4"]
    said = " ".join(compare(*one_seed)[1].split())
    assert "with intervals by a paired bootstrap over sentences" in said  # of one seed there is no spread
    assert "Each seed holds out" not in said
    shutil.rmtree(tmp_path / "5e-05-4")
    code, said, _ = compare(
        *sorted(tmp_path.iterdir()), "--baseline", tmp_path / "2e-05-1", "--output", tmp_path / "out"
    )
    assert code == 0
    other = read(tmp_path / "out", "configurations")[1]
    expected = stats.ttest_1samp([0.06, 0.08, 0.02], 0)
    interval = expected.confidence_interval()
    figures = numbers(other, "difference", "difference_low", "difference_high", "p_value")
    assert figures == pytest.approx([0.16 / 3, interval.low, interval.high, expected.pvalue])
    assert (other["test"], other["seeds"]) == ("paired t", "3")
    assert "intervals by Student's t over seeds" in " ".join(said.split())
    assert "Each seed holds out other sentences" in said
    assert len(read(tmp_path / "out", "pairs")) == 3


def test_names_of_the_classes_make_no_other_sentences(compare: Compare, runs: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "renamed", 0.9, learning_rate=5e-5, seed=1)
    config = other / "resolved.yaml"
    config.write_text(config.read_text().replace("- NEGATIVE", "- bad").replace("- POSITIVE", "- good"))
    predictions = other / "predictions.csv"
    predictions.write_text(predictions.read_text().replace("negative", "bad").replace("positive", "good"))
    code, said, _ = compare(other, "--baseline", runs / "lr2e-05-seed1")
    assert code == 0
    assert "p (McNemar)" in said
    assert "label_names" not in said


def test_other_sentences_are_not_compared(compare: Compare, runs: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / "others" / str(seed), 0.7, film="series", learning_rate=2e-5, seed=seed)
    folders = [*sorted(runs.iterdir()), *sorted((tmp_path / "others").iterdir())]
    code, said, _ = compare(*folders, "--baseline", runs / "lr2e-05-seed1", "--output", tmp_path / "out")
    assert code == 0
    names = ("settings", "evaluated_on", "seeds", "test")
    lines = [[line[name] for name in names] for line in read(tmp_path / "out", "configurations")]
    assert lines == [
        ["learning_rate 2e-05", "A: validation, 100 sentences", "3", "baseline"],
        ["learning_rate 5e-05", "A: validation, 100 sentences", "3", "Welch"],
        ["learning_rate 2e-05", "B: validation, 100 sentences", "2", "other sentences"],
    ]
    assert "Not all runs were evaluated on the same sentences" in said
    assert [line[4] for line in tables_of(said)[0]] == [*"AAAAAABB"]


def test_other_training_data_under_the_same_settings_are_told_apart(
    compare: Compare, runs: Path, tmp_path: Path
) -> None:
    fingerprints = {1: "a" * 64, 2: "b" * 64}  # the third run keeps no checkpoint
    for seed, fingerprint in fingerprints.items():
        checkpoint = runs / f"lr5e-05-seed{seed}" / "checkpoints" / "step-00000040"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text(json.dumps({"fingerprints": {"train": fingerprint}}))
    checkpoint = runs / "lr2e-05-seed1" / "checkpoints" / "step-00000040"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps({"fingerprints": {"train": "c" * 64}}))
    _, said, _ = compare(*sorted(runs.iterdir()), "--output", tmp_path / "out")
    lines = [(line["seeds"], line["training_data"]) for line in read(tmp_path / "out", "configurations")]
    assert lines == [("3", ""), ("1", "aaaaaaaa"), ("1", "bbbbbbbb"), ("1", "")]
    assert "trained on different data" in said


def test_what_is_missing_or_has_not_finished_is_a_line_that_says_so(
    compare: Compare, runs: Path, tmp_path: Path
) -> None:
    ends = {
        4: "INFO ended (stopped): stopped by SIGUSR1: goes on from runs/x",
        5: "ERROR ended (diverged): loss was not finite: lower --learning_rate",
        6: "INFO step 25: loss 0.5",  # killed
        7: "ERROR ended (stopped): stopped by SIGUSR1: goes on from runs/x\nINFO resuming",  # and running
    }
    for seed, log in ends.items():
        folder = write_run(runs / f"lr2e-05-seed{seed}", 0, finished=False, learning_rate=2e-5, seed=seed)
        (folder / "train.log").write_text(f"2026-11-29 {log}\n")
        (folder / "metrics.jsonl").write_text(f'{{"split": "train", "step": {seed}}}\n{{"split": "tr')
    (runs / "lr2e-05-seed4" / "checkpoints" / "step-00000033").mkdir(parents=True)
    file = runs / "lr5e-05-seed3" / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"stopped": "worse than the median of other runs"}))
    (runs / "lr2e-05-seed8").mkdir()
    (runs / "lr2e-05-seed8" / ".lock").touch()
    (runs / "lr2e-05-seed3" / "metrics.json").write_text("{")
    (runs / "notes.txt").touch()
    folders = [*sorted(runs.iterdir()), runs / "lr2e-05-seed9"]
    running = RunFolder(runs / "lr2e-05-seed7")
    running.lock()
    code, said, _ = compare(*folders, "--baseline", runs / "lr2e-05-seed3", "--output", tmp_path / "out")
    running.release()
    assert code == 0
    lines = {line["run"].removeprefix(f"{runs}{os.sep}"): line for line in read(tmp_path / "out", "runs")}
    found = {name: (line["status"], line["step"], line["total_steps"]) for name, line in lines.items()}
    assert found == {
        **{f"lr2e-05-seed{seed}": ("finished", "40", "40") for seed in (1, 2)},
        "lr2e-05-seed3": ("unreadable", "", ""),
        "lr2e-05-seed4": ("stopped", "33", "40"),
        "lr2e-05-seed5": ("diverged", "5", "40"),
        "lr2e-05-seed6": ("unfinished", "6", "40"),
        "lr2e-05-seed7": ("running", "7", "40"),
        "lr2e-05-seed8": ("not started", "", ""),
        "lr2e-05-seed9": ("missing", "", ""),
        **{f"lr5e-05-seed{seed}": ("finished", "40", "40") for seed in (1, 2)},
        "lr5e-05-seed3": ("stopped", "40", "40"),
    }
    assert lines["lr2e-05-seed5"]["note"] == "loss was not finite: lower --learning_rate"
    assert "diverged, 5/40" in said
    means = read(tmp_path / "out", "configurations")
    assert [(line["seeds"], line["seeds_begun"]) for line in means] == [("2", "6"), ("2", "3")]
    assert "8 of 12 runs" in said
    in_one_line = " ".join(said.split())
    assert "lr2e-05-seed5: diverged, loss was not finite" in in_one_line
    assert f"The baseline {runs / 'lr2e-05-seed3'} has not finished: nothing is tested." in in_one_line
    assert f"No runs, and left out: {runs / 'notes.txt'}." in in_one_line
    assert "difference" not in means[0]
    # Another seed of the baseline's configuration is enough.
    _, said, _ = compare(*folders, "--baseline", runs / "lr2e-05-seed5")
    assert "p (Welch)" in said


def test_nothing_is_written_where_nothing_has_finished(compare: Compare, runs: Path, tmp_path: Path) -> None:
    assert compare(*sorted(runs.iterdir()), "--output", tmp_path / "out")[0] == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    unfinished = write_run(tmp_path / "unfinished", 0, finished=False)
    code, said, error = compare(tmp_path / "absent", unfinished, "--output", tmp_path / "out")
    assert (code, error.count("\n")) == (2, 1)
    assert f"none of 2 runs has finished, {unfinished} for one is unfinished" in error
    assert ["absent", "missing"] in tables_of(said)[0]
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_settings_of_no_account_do_not_make_another_configuration(compare: Compare, runs: Path, tmp_path: Path) -> None:
    for number, folder in enumerate(sorted(runs.iterdir())):
        settings = yaml.safe_load((folder / "resolved.yaml").read_text())
        settings |= {"logging_steps": number + 1, "gradient_accumulation_steps": number + 1}
        (folder / "resolved.yaml").write_text(yaml.safe_dump(settings))
    compare(*sorted(runs.iterdir()), "--output", tmp_path / "out")
    assert [line["runs"] for line in read(tmp_path / "out", "configurations")] == ["3", "3"]


def test_a_run_that_is_given_twice_counts_once(compare: Compare, runs: Path, tmp_path: Path) -> None:
    run = runs / "lr2e-05-seed1"
    assert compare(run, run, runs / ".." / "runs" / run.name, "--output", tmp_path / "out")[0] == 0
    assert len(read(tmp_path / "out", "runs")) == 1


def test_a_run_of_an_earlier_version_ran_by_the_defaults(compare: Compare, runs: Path, tmp_path: Path) -> None:
    run = RunFolder(runs / "lr2e-05-seed1")
    settings = [line for line in run.resolved.open() if not line.startswith(("stage_dir", "weight_decay"))]
    run.resolved.write_text("".join(settings))
    compare(*sorted(runs.iterdir()), "--output", tmp_path / "out")
    assert [line["runs"] for line in read(tmp_path / "out", "configurations")] == ["3", "3"]


def test_cells_of_the_csv_are_numbers_or_texts(compare: Compare, tmp_path: Path) -> None:
    for seed in (1, 2):
        for name in ("=A1", "b"):
            write_run(tmp_path / f"{name}{seed}", 0.9 - seed / 100, dataset_revision=name, seed=seed)
    folders = sorted(tmp_path.iterdir())
    compare(*folders, tmp_path / "missing", "--baseline", tmp_path / "b1", "--output", tmp_path / "out")
    texts = {"run", "dataset_revision", "status", "evaluated_on", "note", "settings", "test", "baseline_run"}
    for table in ("runs", "configurations", "pairs"):
        for line in read(tmp_path / "out", table):
            for name, cell in line.items():
                assert name in texts or cell == "" or np.isfinite(float(cell)), (table, name, cell)
                assert not cell.startswith("=")


@pytest.mark.parametrize(("width", "has_list"), [(80, True), (120, False)])
def test_a_table_fits_the_terminal_with_any_names(
    compare: Compare, tmp_path: Path, width: int, has_list: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    names = ("[bold]a", f"{'long-' * 40}name :smile:", "映画")
    folders = []
    for number, name in enumerate(names):
        others: dict[str, Any] = {
            "learning_rate": (number + 1) * 1e-5,
            "weight_decay": number / 100,
            "label_smoothing": number / 10,
        }
        others |= {
            "num_train_epochs": 1.0 + number,
            "global_batch_size": 16 * (number + 1),
            "warmup_ratio": number / 10,
        }
        for seed in (1, 2):
            folder = tmp_path / f"{name[:40]}{'_of_a_sweep' * 12}-seed{seed}"
            folders.append(write_run(folder, 0.9 - seed / 100, dataset_revision=name, seed=seed, **others))
    folders.append(write_run(tmp_path / "unfinished", 0, finished=False))
    code, said, _ = compare(*folders, "--baseline", folders[0], "--output", tmp_path / "out")
    assert code == 0
    below = said.partition("\n\n")[2]  # without the folder, which may be longer
    columns = [sum(2 if "\u2e80" < letter < "\ua000" else 1 for letter in line) for line in below.splitlines()]
    tables = below.partition("Column #")[0]
    assert max(columns[: tables.count("\n")]) <= width
    assert tables.count("0.8900") >= 3  # no figure is cut
    assert tables.count("0.8850 ± 0.0071") == 3
    assert "-seed2" in tables  # what names differ by
    assert "No room for" in said
    assert ("\n3: " in tables) == has_list  # of settings that have no room for a column
    assert "\x1b" not in said
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    assert all(name in markdown for name in names)
    assert "sentences/s" in markdown
    assert "\n#" not in markdown  # which would be a heading


def test_a_bar_in_a_setting_does_not_end_its_cell(compare: Compare, tmp_path: Path) -> None:
    one, other = (write_run(tmp_path / name, 0.9, dataset_revision=name) for name in ("a|b", "c"))
    compare(one, other, "--output", tmp_path / "out")
    assert "| a\\|b " in (tmp_path / "out" / "comparison.md").read_text()


@pytest.mark.parametrize(("count", "name"), [(4, "a"), (40, f"$a_{'long-' * 30}")])
def test_the_plot_fits_any_number_and_length_of_names(compare: Compare, tmp_path: Path, count: int, name: str) -> None:
    for number in range(count):
        own: dict[str, Any] = {"dataset_revision": f"{name}{number // 2}", "seed": number % 2}
        own["film"] = "series" if number == count - 1 else "film"  # other sentences: another panel
        write_run(tmp_path / "runs" / f"{number:02}", 0.8 + number / 1000, **own)
    folders = sorted((tmp_path / "runs").iterdir())
    assert compare(*folders, "--baseline", folders[0], "--output", tmp_path / "out")[0] == 0
    picture = imread(tmp_path / "out" / "comparison.png")[..., :3]
    assert picture.shape[1] == 1500
    assert 40 < picture.shape[0] / count < 250  # a row for each, and none on another
    edges = [picture[0], picture[-1], picture[:, 0], picture[:, -1]]
    assert all((edge == 1).all() for edge in edges)  # nothing reaches beyond it
    red = (picture[..., 0] > 0.8) & (picture[..., 1] < 0.3)
    assert red.any()  # the baseline's line
    is_frame = (picture.max(axis=2) < 0.5).mean(axis=1) > 0.3
    assert (np.diff(is_frame.astype(int)) == 1).sum() == 4  # above and below each of two panels


def test_mistakes_are_one_line(compare: Compare, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    run = runs / "lr2e-05-seed1"
    shortened, damaged, list_, gone = (Path(shutil.copytree(run, tmp_path / f"{n}")) for n in range(4))
    (shortened / "predictions.csv").write_text("split,row,sentence,label,prediction\n")
    (damaged / "metrics.json").write_text('{"split": "validation", "count": 100, "accuracy": 0.9}')
    (list_ / "metrics.json").write_text("[1]")
    (gone / "resolved.yaml").unlink()
    mistakes = {
        (tmp_path / "empty",): "holds no run",
        (tmp_path / "typo",): "typo does not exist: give folders of runs, such as runs/*",
        (run, "--baseline", tmp_path / "empty"): "--baseline",
        (run, "--baseline", tmp_path / "typo"): "--baseline",
        (shortened,): "predictions.csv has 0 sentences, metrics.json 100",
        (damaged,): "metrics.json lacks accuracy_ci95",
        (list_,): "cannot be read",
        (gone,): "cannot be read (resolved.yaml is missing): leave it out, or run it again",
    }
    for arguments, message in mistakes.items():
        code, _, error = compare(*arguments)
        assert code == 2
        assert error.count("\n") == 1
        assert message in error
    code, _, error = compare(run, "--output", tmp_path / "file")
    assert code == 2
    assert "--output" in error
