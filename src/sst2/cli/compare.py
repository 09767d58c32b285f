"""Put runs side by side: what differs in their settings, what they reached, and whether that is more than chance.

    python -m sst2.compare runs/*
    python -m sst2.compare runs/* --baseline runs/first --output runs/comparison

Prints one table of runs and one of configurations, in which runs that differ by their seed alone stand together.
Against a baseline of several seeds, runs of the same seed are compared one by one as well.
`--output DIR` writes comparison.md, comparison.png, and each table as csv: runs, configurations, pairs.
"""

import csv
import json
import sys
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sst2.config.arguments import OF_ONE_START
from sst2.config.class_names import order_of_classes
from sst2.config.one_line_parser import OneLineParser
from sst2.config.settings import LABEL_NAMES, NAMES, Settings
from sst2.config.yaml_file import names_what_was_worked_out
from sst2.data.csv_cells import to_cell
from sst2.evaluation.predictions import read_predictions
from sst2.evaluation.significance import Difference, compare_accuracy, mcnemar, mean_interval
from sst2.runs.run_folder import RunFolder, is_run
from sst2.utils.atomic_file import write_text
from sst2.utils.console import say, standard_output
from sst2.utils.errors import UserError, exit_codes

PROGRAM = "python -m sst2.compare"
# Settings that say where, how often and in what portions something is done, and nothing of the result.
OF_NO_ACCOUNT = (
    "output_dir report_to logging_steps log_sample_ids checkpointing_steps checkpoints_total_limit step_timeout "
    "connect_timeout stage_dir per_device_eval_batch_size per_device_train_batch_size gradient_accumulation_steps "
    "sentence_column label_column label_names cuda_graphs"
).split()
FIGURES = ("accuracy", "accuracy_ci95", "f1", "loss", "step", "sentences_per_second")
TOO_FEW_SEEDS = 3  # up to which the spread over seeds is little more than a guess


@dataclass(frozen=True, eq=False)
class Run:
    """One run. `metrics` and `correct` are None where it has not finished.

    Attributes:
        settings: that decide on the result, the seed among them.
        metrics: as in `metrics.json`.
        label_names: what it calls the classes 0 and 1.
        sentences: what it was evaluated on, with the labels as numbers.
        correct: (sentences,) bool, whether each prediction is right.
    """

    name: str
    settings: dict[str, Any]
    metrics: dict[str, Any] | None = None
    label_names: tuple[str, ...] = LABEL_NAMES
    sentences: tuple[tuple[str, str], ...] = ()
    correct: np.ndarray | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run has written its final metrics."""
        return self.metrics is not None


def main(argv: list[str] | None = None) -> None:
    """Raises UserError: a folder is no run, a file in it cannot be read, or nothing has finished."""
    parser = OneLineParser(prog=PROGRAM, description="Put runs side by side.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--baseline", type=Path, metavar="RUN", help="run whose configuration the others are tested on")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write the tables and a plot to")
    arguments = parser.parse_args(argv)
    if missing := [folder for folder in arguments.runs if not folder.exists()]:
        raise UserError(f"{missing[0]} does not exist: give folders of runs, such as runs/*")
    folders = list({folder.resolve(): folder for folder in arguments.runs if is_run(folder)}.values())
    if not folders:
        raise UserError(f"{arguments.runs[0]} holds no run: give folders with a config.yaml, such as runs/*")
    runs = [read_run(folder) for folder in folders]
    baseline = _baseline(arguments.baseline, runs)
    if not any(run.is_finished for run in runs):
        raise UserError(f"none of {len(runs)} runs has finished, {runs[0].name} for one: there is no metrics.json")

    differing = differing_settings(runs)
    of_runs = table_of_runs(runs, differing)
    of_groups = table_of_groups(runs, [name for name in differing if name != "seed"], baseline)
    tables = {"runs": of_runs, "configurations": of_groups}
    of_pairs = table_of_pairs(runs, [name for name in differing if name != "seed"], baseline)
    if len(of_pairs) > 1:
        tables["pairs"] = of_pairs
    without = [str(folder) for folder in arguments.runs if not is_run(folder)]
    text = "\n".join([*map(markdown, tables.values()), remarks(runs, baseline, without)])
    say(text)
    if arguments.output:
        write(arguments.output, text, tables, runs, differing)


def _baseline(folder: Path | None, runs: list[Run]) -> Run | None:
    """The run that others are tested against. It is put before the runs if it is not among them."""
    if folder is None:
        return None
    if not is_run(folder):
        raise UserError(f"--baseline {folder} holds no run: give a folder with a config.yaml")
    for run in runs:
        if Path(run.name).resolve() == folder.resolve():
            return run
    runs.insert(0, read_run(folder))
    return runs[0]


def write(folder: Path, text: str, tables: dict[str, list[list[str]]], runs: list[Run], differing: list[str]) -> None:
    """Write the text, each table as csv, and a plot.

    Raises:
        UserError: the folder cannot be written.
    """
    from sst2.tracking.plots import plot_accuracy

    finished = [(_label(run, differing) or run.name, run.metrics) for run in runs if run.metrics]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "comparison.md", text)
        (folder / "pairs.csv").unlink(missing_ok=True)  # there may be none this time
        for name, table in tables.items():
            write_text(folder / f"{name}.csv", as_csv(table))
        plot_accuracy(folder / "comparison.png", *map(list, zip(*finished, strict=True)))
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written ({error.strerror}): name another folder") from None


def read_run(folder: Path) -> Run:
    """Read the files of one run.

    Raises:
        UserError: one of them is damaged or missing.
    """
    place = RunFolder(folder)
    try:
        record = place.resolved if place.resolved.is_file() else place.config  # which once held both
        recorded = yaml.safe_load(record.read_text(encoding="utf-8"))
        if record == place.config and not names_what_was_worked_out(recorded):
            raise ValueError(f"{place.resolved.name} is missing")
        # A run of an earlier version lacks the settings that came later, and ran as their defaults say.
        settings = Settings().values() | recorded
        deciding = {name: value for name, value in settings.items() if name not in (*OF_NO_ACCOUNT, *OF_ONE_START)}
        if not place.metrics.is_file():
            return Run(str(folder), deciding)
        metrics = json.loads(place.metrics.read_text(encoding="utf-8"))
        rows = read_predictions(place.predictions, metrics["split"])
        number = {name.upper(): str(number) for number, name in enumerate(settings["label_names"])}
        sentences = tuple((row["sentence"], number.get(row["label"].upper(), "")) for row in rows)
        correct = np.array([row["label"] == row["prediction"] for row in rows])
        if missing := [name for name in FIGURES if name not in metrics]:
            raise ValueError(f"{place.metrics.name} lacks {missing[0]}")
        if len(rows) != metrics["count"]:
            raise ValueError(f"{place.predictions.name} has {len(rows)} sentences, metrics.json {metrics['count']}")
    except (OSError, ValueError, LookupError, AttributeError, TypeError, csv.Error, yaml.YAMLError) as error:
        raise UserError(f"{folder} cannot be read ({error}): leave it out, or run it again") from None
    return Run(str(folder), deciding, metrics, tuple(settings["label_names"]), sentences, correct)


def same_sentences(run: Run, other: Run) -> bool:
    """Whether two runs were evaluated on the same sentences with the same labels.

    Labels are compared by name where both runs name the same two classes, in whatever order, and by number otherwise.
    """
    order = order_of_classes(other.label_names, run.label_names) or [0, 1]
    number = {"0": str(order[0]), "1": str(order[1])}
    return tuple((sentence, number.get(label, label)) for sentence, label in run.sentences) == other.sentences


def differing_settings(runs: list[Run]) -> list[str]:
    """Names of the settings that are not the same in all runs, in the order of the flags."""
    return [name for name in NAMES if len({repr(run.settings.get(name)) for run in runs}) > 1]


def grouped(runs: list[Run]) -> list[list[Run]]:
    """The finished runs, those together that differ by their seed alone."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.is_finished:
            groups.setdefault(_configuration(run), []).append(run)
    return list(groups.values())


def table_of_runs(runs: list[Run], differing: list[str]) -> list[list[str]]:
    """A line of names, and a line for each run."""
    lines = [["run", *differing, "accuracy", "95 % interval", "f1", "loss", "step", "sentences/s"]]
    for run in runs:
        settings = [_word(run.settings.get(name)) for name in differing]
        if run.metrics is None:
            lines.append([run.name, *settings, "not finished", "", "", "", "", ""])
            continue
        low, high = run.metrics["accuracy_ci95"]
        figures = [f"{run.metrics['accuracy']:.4f}", f"{low:.4f} to {high:.4f}", f"{run.metrics['f1']:.4f}"]
        figures += [
            f"{run.metrics['loss']:.4f}",
            str(run.metrics["step"]),
            f"{run.metrics['sentences_per_second']:.0f}",
        ]
        lines.append([run.name, *settings, *figures])
    return lines


def table_of_groups(runs: list[Run], differing: list[str], baseline: Run | None) -> list[list[str]]:
    """A line of names, and a line for each configuration, with its difference to the baseline's where there is one."""
    groups = grouped(runs)
    reference = _reference(groups, baseline)
    names = ["configuration", "runs", "accuracy", "95 % interval of the mean", "f1", "loss", "sentences/s"]
    lines = [names + (["difference to baseline", "95 % interval", "p"] if reference else [])]
    for group in groups:
        metrics = [run.metrics for run in group if run.metrics]
        _, _, interval = mean_interval([float(values["accuracy"]) for values in metrics])
        line = [_label(group[0], differing) or "all", str(len(group)), _mean(metrics, "accuracy", 4)]
        line.append(f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "one seed")
        line += [_mean(metrics, "f1", 4), _mean(metrics, "loss", 4), _mean(metrics, "sentences_per_second", 0)]
        if reference:
            line += _against(group, reference)
        lines.append(line)
    return lines


def table_of_pairs(runs: list[Run], differing: list[str], baseline: Run | None) -> list[list[str]]:
    """A line of names, and one for each run of several that has one of the baseline's configuration with its seed."""
    groups = grouped(runs)
    reference = _reference(groups, baseline)
    lines = [["configuration", "seed", "right here alone", "right in the baseline alone", "p (McNemar)"]]
    for group in groups:
        if group == reference or min(len(group), len(reference)) < 2:
            continue
        for run in group:
            for other in reference:
                if run.settings["seed"] != other.settings["seed"] or not same_sentences(run, other):
                    continue
                here, there, p_value = mcnemar(*_correct([run, other]))
                words = [_label(run, differing), str(run.settings["seed"])]
                lines.append([*words, str(here), str(there), f"{p_value:.3g}"])
    return lines


def _reference(groups: list[list[Run]], baseline: Run | None) -> list[Run]:
    """The runs of the baseline's configuration; none without a baseline that has finished."""
    if baseline is None or not baseline.is_finished:
        return []
    return next(group for group in groups if baseline in group)


def remarks(runs: list[Run], baseline: Run | None, without: list[str]) -> str:
    """What a reader must know to read the tables.

    Args:
        runs: that are compared.
        baseline: which the others are compared with, if one is.
        without: folders in which there is no run.
    """
    lines = ["Intervals: of a run, Wilson's over its sentences; of a mean, Student's t over seeds. ± is one deviation."]
    if baseline and baseline.is_finished:
        lines.append(
            f"Baseline: the configuration of {baseline.name}. Differences on the same sentences; their intervals by a "
            "paired bootstrap over sentences. p, where one run meets one: McNemar's exact test, of two models and not "
            "of other seeds; where several meet several: Welch's t-test, of other seeds; where one meets several: the "
            "bootstrap. Runs of one seed are pairs of one line each; the pairs share their sentences, so that their p "
            "are not independent. Not corrected for the number of comparisons."
        )
    elif baseline:
        lines.append(f"The baseline {baseline.name} has not finished: nothing is tested.")
    if any(len({run.settings["seed"] for run in group}) < len(group) for group in grouped(runs)):
        lines.append("Some configurations have several runs of one seed, which say less than their number.")
    if any(1 < len(group) <= TOO_FEW_SEEDS for group in grouped(runs)):
        lines.append(f"With {TOO_FEW_SEEDS} seeds or fewer, the spread over seeds is little more than a guess.")
    if any((run.metrics or {}).get("selected", "").endswith("flatters these figures") for run in runs):
        lines.append("Some of these models were selected on the sentences they are compared on, which flatters them.")
    if unfinished := [run.name for run in runs if not run.is_finished]:
        lines.append(f"Not finished, and in no mean: {', '.join(unfinished)}.")
    if without:
        lines.append(f"No run there, or none that has begun: {', '.join(without)}.")
    return "\n".join(lines) + "\n"


def markdown(table: list[list[str]]) -> str:
    """The table with columns of even width, which reads well in a terminal too."""
    table = [[word.replace("|", "\\|") for word in line] for line in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [" | ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)) for line in table]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "".join(f"| {line} |\n" for line in lines)


def as_csv(table: list[list[str]]) -> str:
    """The table as csv in which a spreadsheet calculates nothing."""
    stream = StringIO()
    csv.writer(stream, lineterminator="\n").writerows([map(to_cell, line) for line in table])
    return stream.getvalue()


def _against(group: list[Run], reference: list[Run]) -> list[str]:
    if group == reference:
        return ["baseline", "", ""]
    if not all(same_sentences(run, reference[0]) for run in group + reference):
        return ["other sentences", "", ""]
    found: Difference = compare_accuracy(_correct(group), _correct(reference))
    value, low, high = (f"{round(number, 4) + 0.0:+.4f}" for number in (found.value, found.low, found.high))  # no -0
    return [value, f"{low} to {high}", f"{found.p_value:.3g} ({found.test})"]


def _correct(group: list[Run]) -> np.ndarray:
    return np.stack([run.correct for run in group if run.correct is not None])


def _configuration(run: Run) -> str:
    return repr(sorted((name, value) for name, value in run.settings.items() if name != "seed"))


def _label(run: Run, differing: list[str]) -> str:
    return ", ".join(f"{name} {_word(run.settings.get(name))}" for name in differing)


def _word(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _mean(metrics: list[dict[str, Any]], name: str, digits: int) -> str:
    mean, deviation, _ = mean_interval([float(values[name]) for values in metrics])
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(metrics) > 1 else "")


if __name__ == "__main__":
    with exit_codes(PROGRAM), standard_output():
        main(sys.argv[1:])
