"""Runs side by side, as tables: what differs in their settings, what they reached, whether that is more than chance."""

import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from sst2.evaluation.configurations import (
    Configuration,
    evaluation_sets,
    group_runs,
    is_holdout,
    names_of_settings,
)
from sst2.evaluation.predictions import f1_name
from sst2.evaluation.run_results import Run, same_classes, same_sentences
from sst2.evaluation.significance import Difference, compare_accuracy, compare_by_seed, mcnemar
from sst2.evaluation.tables import Column, Record, Table, figure, interval, plain, spread, text, word
from sst2.utils.console import Fit

TOO_FEW_SEEDS = 3  # up to which the spread over seeds is little more than a guess
TESTS = {  # of `Difference`, in words
    "McNemar": "the exact test of one run against one, which speaks of these two models, and not of other seeds",
    "Welch": "the t-test of several seeds against several, which speaks of other seeds on these sentences",
    "paired t": "the t-test of seeds that both have, as pairs, which speaks of other seeds and sentences",
    "bootstrap": "over sentences, where one seed meets several, which speaks of other sentences, not of other seeds",
}


class Comparison:
    """Runs against each other, and against a baseline where there is one.

    Args:
        runs: of any status; at least one of them has begun.
        baseline: one of them; the others are tested against its configuration if a run of that has finished.

    Attributes:
        differing: names of the settings that are not the same in all runs, without the seed.
        configurations: the runs by settings and data, in the order of their first runs.
        reference: the baseline's configuration; None without one that has finished.
    """

    def __init__(self, runs: Sequence[Run], baseline: Run | None) -> None:
        self.runs = runs
        begun = [run for run in runs if run.settings]
        names = names_of_settings(begun)
        self._sets = evaluation_sets(runs)
        self.differing = [name for name in names if len({repr(run.settings.get(name)) for run in begun}) > 1]
        self.configurations = group_runs(runs, names, self._sets)
        self._of_run = {run: group for group in self.configurations for run in group.runs}
        self._f1 = sorted({f1_name(run.metrics) for run in runs if run.metrics})
        self._baseline = baseline
        group = self._of_run.get(baseline) if baseline else None
        self.reference = group if group and group.finished else None
        self._trained_on_others = any(group.training_data is not None for group in self.configurations)
        self._configurations, self._pairs = self._configuration_records(), self._pair_records()

    def tables(self) -> dict[str, Table]:
        """By name: `runs`, `pairs` of runs that have the same seed, if there are any, and `configurations`."""
        pairs = {"pairs": self._pairs_table()} if self._pairs else {}
        # the last where a terminal stops
        return {"runs": self._runs_table(), **pairs, "configurations": self._configurations_table()}

    def label(self, group: Configuration, names: Sequence[str] | None = None) -> str:
        """What distinguishes a configuration: the settings that are not the same in all runs, or those named."""
        values = self._values(group.runs[0])
        words = [f"{name} {word(value) or 'none'}" for name, value in values.items() if names is None or name in names]
        return ", ".join(words) or "all"

    def set_name(self, group: Configuration) -> str:
        """What a configuration was evaluated on; with a letter where there are several sets of sentences."""
        if group.evaluated_on is None:
            return ""
        first = self._sets[group.evaluated_on][0]
        metrics = first.metrics or {}
        count = "by seed" if is_holdout(first) else f"{metrics['count']} sentences"
        return f"{_letter(group.evaluated_on)}: " * (len(self._sets) > 1) + f"{metrics['split']}, {count}"

    def _settings(self, records: Sequence[Record], rank: int) -> list[Column]:
        """A column for each setting that differs, and for training data that do."""
        names = [*self.differing, *(["training_data"] if self._trained_on_others else [])]
        return [Column(name, text(name), Fit(_kind(records, name), rank, 12)) for name in names]

    def _evaluated_on(self) -> list[Column]:
        """The letter of the sentences, where there are several sets of them."""
        title = Column("evaluated on", lambda record: record["evaluated_on"].partition(":")[0])
        return [title] if len(self._sets) > 1 else []

    def _runs_table(self) -> Table:
        records = []
        for run in self.runs:
            group, metrics = self._of_run.get(run), run.metrics or {}
            low, high = metrics.get("accuracy_ci95", (None, None))
            records.append(
                {"run": run.name, "configuration": group.number if group else None}
                | self._values(run)
                | {"seed": run.seed, "status": run.status, "step": run.step, "total_steps": run.total_steps}
                | {"evaluated_on": self.set_name(group) if group and run.is_finished else ""}
                | {"accuracy": metrics.get("accuracy"), "accuracy_low": low, "accuracy_high": high}
                | {name: metrics.get(name) for name in (*self._f1, "loss", "sentences_per_second")}
                | {"note": run.note}
            )
        parent = common_parent([run.name for run in self.runs])
        columns = [
            Column(
                "run", lambda record: os.path.relpath(record["run"], parent) if parent else record["run"], Fit("name")
            ),
            Column("#", text("configuration")),
            *self._settings(records, rank=2),
            Column("seed", text("seed")),
        ]
        if not all(run.is_finished for run in self.runs):
            columns.append(Column("status, steps", _status, Fit("text", 0, 10)))
        columns += [
            *self._evaluated_on(),
            Column("accuracy", figure("accuracy", 4)),
            Column("95 % interval", interval("accuracy_low", "accuracy_high", 4), Fit(rank=3)),
            *(Column(name, figure(name, 4), Fit(rank=4)) for name in self._f1),
            Column("loss", figure("loss", 4), Fit(rank=5)),
            Column("step", lambda record: word(record["step"]) if record["status"] == "finished" else "", Fit(rank=6)),
            Column("sentences/s", figure("sentences_per_second", 0), Fit(rank=7)),
        ]
        return Table(records, columns)

    def _values(self, run: Run) -> Record:
        """The settings of a run that differ, as part of a record."""
        group = self._of_run.get(run)
        values = {name: plain(run.settings.get(name)) for name in self.differing}
        known = group.training_data if group else None
        return values | ({"training_data": known and known[:8]} if self._trained_on_others else {})

    def _configuration_records(self) -> list[Record]:
        records = []
        for group in self.configurations:
            record: Record = {"configuration": group.number, "settings": self.label(group)}
            record |= self._values(group.runs[0])
            record |= {"evaluated_on": self.set_name(group), "seeds": len(group.by_seed)}
            record |= {"seeds_begun": len({run.seed for run in group.runs}), "runs": len(group.finished)}
            for name in ("accuracy", *self._f1, "loss", "sentences_per_second"):
                found = group.summary(name)
                record |= {f"{name}_mean": found and found.mean, f"{name}_std": found and found.deviation}
                if name == "accuracy":
                    record |= {"accuracy_low": found and found.low, "accuracy_high": found and found.high}
            records.append(record | (self._against_reference(group) if self.reference else {}))
        return records

    def _configurations_table(self) -> Table:
        records = self._configurations
        has_repeats = any(record["runs"] > record["seeds"] for record in records)
        columns = [
            Column("#", text("configuration")),
            *self._settings(records, rank=1),
            *self._evaluated_on(),
            Column("seeds", _seeds),
            *([Column("runs", text("runs"), Fit(rank=4))] if has_repeats else []),
            Column("accuracy", spread("accuracy_mean", "accuracy_std", 4)),
            Column("95 % interval of the mean", _interval_of_mean, Fit(rank=3)),
            *(Column(name, spread(f"{name}_mean", f"{name}_std", 4), Fit(rank=5)) for name in self._f1),
            Column("loss", spread("loss_mean", "loss_std", 4), Fit(rank=6)),
            Column("sentences/s", spread("sentences_per_second_mean", "sentences_per_second_std", 0), Fit(rank=7)),
        ]
        if self.reference:
            columns += [
                Column("difference", figure("difference", 4, "+")),
                Column("95 % interval of it", interval("difference_low", "difference_high", 4, "+"), Fit(rank=2)),
                _p_value(records),
            ]
        return Table(records, columns)

    def _against_reference(self, group: Configuration) -> Record:
        """A configuration's part of its record that compares it with the baseline's."""
        reference = self.reference
        assert reference is not None
        found, test = None, ""
        if group is reference:
            test = "baseline"
        elif group.finished and group.evaluated_on == reference.evaluated_on:
            found = _difference(group, reference)
            test = found.test if found else "other sentences"
        elif group.finished:
            is_known = same_classes(group.finished[0], reference.finished[0])
            test = "other sentences" if is_known else "other classes"
        return {
            "difference": found and found.value,
            "difference_low": found and found.low,
            "difference_high": found and found.high,
            "p_value": found and found.p_value,
            "test": test,
        }

    def _pair_records(self) -> list[Record]:
        """One for each run of several that has one of the baseline's several with its seed; empty without any."""
        records = []
        others = self.reference.finished if self.reference else []
        for group in self.configurations:
            if group is self.reference or min(len(group.finished), len(others)) < 2:
                continue
            for run, other in product(group.finished, others):
                if run.seed == other.seed and same_sentences(run, other):
                    here, there, p_value = mcnemar(_correct(run), _correct(other))
                    record: Record = {"configuration": group.number, "settings": self.label(group)}
                    record |= self._values(run)
                    record |= {"seed": run.seed, "run": run.name, "baseline_run": other.name}
                    record |= {"right_here_alone": here, "right_in_baseline_alone": there, "p_value": p_value}
                    records.append(record)
        return records

    def _pairs_table(self) -> Table:
        columns = [
            Column("#", text("configuration")),
            *self._settings(self._pairs, rank=1),
            Column("seed", text("seed")),
            Column("right here alone", text("right_here_alone")),
            Column("right in the baseline alone", text("right_in_baseline_alone")),
            Column("p (McNemar)", lambda record: f"{record['p_value']:.3g}"),
        ]
        return Table(self._pairs, columns)

    def remarks(self) -> list[str]:
        """What a reader must know to read the tables."""
        lines = [
            "Column # numbers the configurations: runs with the same settings but for the seed. ± is one standard "
            "deviation over seeds. Intervals: of a run, Wilson's over its sentences; of a mean, Student's t over seeds."
        ]
        if self.reference and self._baseline:
            lines += self._about_tests(self._baseline.name, self.reference)
        elif self._baseline:
            lines.append(f"The baseline {self._baseline.name} has not finished: nothing is tested.")
        return [*lines, *self._warnings()]

    def _about_tests(self, name: str, reference: Configuration) -> list[str]:
        tests = [record["test"] for record in self._configurations if record["p_value"] is not None]
        way = "on the same sentences, with intervals by a paired bootstrap over sentences"
        if "paired t" in tests:
            way = "seed by seed, each on the sentences that it holds out, with intervals by Student's t over seeds"
        lines = [f"Baseline: the configuration of {name}. Differences are measured {way}."]
        lines += [f"{test}: {words}." for test, words in TESTS.items() if test in tests]
        if self._pairs:
            shared = (
                "" if is_holdout(reference.finished[0]) else ", whose p are not independent: all share the sentences"
            )
            lines.append(f"Pairs are runs of one seed, by McNemar's exact test{shared}.")
        return lines + ["The p are not corrected for the number of comparisons."] * (len(tests) > 1)

    def _warnings(self) -> list[str]:
        lines, groups = [], self.configurations
        if len(self._sets) > 1:
            names = {group.evaluated_on: self.set_name(group) for group in groups if group.finished}
            lines.append(
                f"Not all runs were evaluated on the same sentences: {'; '.join(names.values())}. Accuracies on "
                "different sentences cannot be compared: they are neither averaged nor tested."
            )
        if self._trained_on_others:
            lines.append("Runs of the same settings were trained on different data, by fingerprints in checkpoints.")
        if any(is_holdout(group.finished[0]) for group in groups if len(group.by_seed) > 1):
            lines.append("Each seed holds out other sentences: the spread over seeds is one over sentences as well.")
        if any(len(group.by_seed) < len(group.finished) for group in groups):
            lines.append("Some seeds have several runs: these repeats are averaged first, and count as one.")
        if any(1 < len(group.by_seed) <= TOO_FEW_SEEDS for group in groups):
            lines.append(f"With {TOO_FEW_SEEDS} seeds or fewer, the spread over seeds is little more than a guess.")
        if any((run.metrics or {}).get("selected", "").endswith("flatters these figures") for run in self.runs):
            lines.append(
                "Some of these models were selected on the sentences they are compared on, which flatters them."
            )
        if count := sum(not run.is_finished for run in self.runs):
            lines.append(f"Not finished, and in no mean: {count} of {len(self.runs)} runs.")
        ends = {run: run.note if run.note.startswith(run.status) else f"{run.status}, {run.note}" for run in self.runs}
        return lines + [f"{run.name}: {end}" for run, end in ends.items() if run.note]


def common_parent(names: Sequence[str]) -> str:
    """The folder that all runs are in, which a table need not repeat; empty if there is none."""
    parents = {str(Path(name).parent) for name in names}
    try:
        return os.path.commonpath(parents).removesuffix(".")
    except ValueError:  # absolute and relative ones
        return ""


def _difference(group: Configuration, reference: Configuration) -> Difference | None:
    """How much more accurate a configuration is than the reference; None where they share no seed's sentences."""
    seeds, others = list(group.by_seed), list(reference.by_seed)
    if not is_holdout(group.finished[0]):
        first, second = [group.correct(seed) for seed in seeds], [reference.correct(seed) for seed in others]
        return compare_accuracy(np.stack(first), np.stack(second))
    shared = [seed for seed in seeds if seed in others]
    if not shared:
        return None
    return compare_by_seed([group.correct(seed) for seed in shared], [reference.correct(seed) for seed in shared])


def _correct(run: Run) -> np.ndarray:
    assert run.correct is not None
    return run.correct


def _kind(records: Sequence[Record], name: str) -> Any:
    """Numbers and short words are never cut."""
    return "figure" if all(len(word(record[name])) <= 12 for record in records) else "name"


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"{_letter(number // 26 - 1)}{_letter(number % 26)}"


def _status(record: Record) -> str:
    step, total = record["step"], record["total_steps"]
    if record["status"] == "finished" or total is None:
        return str(record["status"])
    return f"{record['status']}, {step or 0}/{total}"


def _seeds(record: Record) -> str:
    finished, begun = record["seeds"], record["seeds_begun"]
    return str(finished) if finished == begun else f"{finished} of {begun}"


def _interval_of_mean(record: Record) -> str:
    ends = interval("accuracy_low", "accuracy_high", 4)(record)
    return ends or ("one seed" if record["seeds"] == 1 else "")


def _p_value(records: Sequence[Record]) -> Column:
    """The column of p-values, with the test in each cell unless all are from the same one."""
    tests = {record["test"] for record in records if record["p_value"] is not None}
    title = f"p ({min(tests)})" if len(tests) == 1 else "p"

    def show(record: Record) -> str:
        if record["p_value"] is None:
            return str(record["test"])
        return f"{record['p_value']:.3g}" + ("" if len(tests) == 1 else f" ({record['test']})")

    return Column(title, show, Fit("text", 0, 9))
