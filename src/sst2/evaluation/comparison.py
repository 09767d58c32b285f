"""Runs side by side, as tables: what differs in their settings, what they reached, whether that is more than chance."""

from typing import Any

import numpy as np

from sst2.config.flag_groups import NAMES
from sst2.evaluation.predictions import f1_name
from sst2.evaluation.run_results import Run, same_classes, same_sentences
from sst2.evaluation.significance import compare_accuracy, mcnemar, mean_interval

TOO_FEW_SEEDS = 3  # up to which the spread over seeds is little more than a guess

Table = list[list[str]]  # the first line has the columns' names


class Comparison:
    """Runs against each other, and against a baseline where there is one.

    Args:
        runs: at least one of them has finished.
        baseline: one of them; the others are tested against its configuration if it has finished.
    """

    def __init__(self, runs: list[Run], baseline: Run | None) -> None:
        self.runs, self._baseline = runs, baseline
        self._differing = [name for name in NAMES if len({repr(run.settings.get(name)) for run in runs}) > 1]
        configurations: dict[str, list[Run]] = {}
        for run in runs:
            if run.is_finished:
                configurations.setdefault(run.configuration, []).append(run)
        self._groups = list(configurations.values())  # finished runs that differ by their seed alone
        # of the class 1 where there are two, else the macro average; a column with both says so
        self._f1 = " or ".join(sorted({f1_name(run.metrics) for run in runs if run.metrics}))
        self._reference = configurations.get(baseline.configuration, []) if baseline and baseline.is_finished else []

    def tables(self) -> dict[str, Table]:
        """By name: `runs`, `configurations`, and `pairs` of runs that have the same seed, if there are any."""
        pairs = self._pairs()
        return {"runs": self._each_run(), "configurations": self._configurations()} | (
            {"pairs": pairs} if pairs else {}
        )

    def label(self, run: Run, with_seed: bool = True) -> str:
        """What distinguishes it: the settings that are not the same in all runs."""
        names = [name for name in self._differing if with_seed or name != "seed"]
        return ", ".join(f"{name} {_word(run.settings.get(name))}" for name in names)

    def _each_run(self) -> Table:
        lines = [["run", *self._differing, "accuracy", "95 % interval", self._f1, "loss", "step", "sentences/s"]]
        for run in self.runs:
            line = [run.name, *(_word(run.settings.get(name)) for name in self._differing)]
            if metrics := run.metrics:
                low, high = metrics["accuracy_ci95"]
                line += [f"{metrics['accuracy']:.4f}", f"{low:.4f} to {high:.4f}", f"{metrics[f1_name(metrics)]:.4f}"]
                line += [f"{metrics['loss']:.4f}", str(metrics["step"]), f"{metrics['sentences_per_second']:.0f}"]
            else:
                line += ["not finished", *[""] * 5]
            lines.append(line)
        return lines

    def _configurations(self) -> Table:
        names = ["configuration", "runs", "accuracy", "95 % interval of the mean", self._f1, "loss", "sentences/s"]
        lines = [names + (["difference to baseline", "95 % interval", "p"] if self._reference else [])]
        for group in self._groups:
            metrics = [run.metrics for run in group if run.metrics]
            _, _, interval = mean_interval([float(values["accuracy"]) for values in metrics])
            line = [self.label(group[0], with_seed=False) or "all", str(len(group)), _mean(metrics, "accuracy", 4)]
            line.append(f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "one seed")
            line += [
                _mean(metrics, f1_name(metrics[0]), 4),
                _mean(metrics, "loss", 4),
                _mean(metrics, "sentences_per_second", 0),
            ]
            lines.append(line + (self._against_reference(group) if self._reference else []))
        return lines

    def _against_reference(self, group: list[Run]) -> list[str]:
        if group == self._reference:
            return ["baseline", "", ""]
        if not all(same_classes(run, self._reference[0]) for run in group):
            return ["other classes", "", ""]
        if not all(same_sentences(run, self._reference[0]) for run in group + self._reference):
            return ["other sentences", "", ""]
        found = compare_accuracy(_correct(group), _correct(self._reference))
        value, low, high = (
            f"{round(number, 4) + 0.0:+.4f}" for number in (found.value, found.low, found.high)
        )  # no -0
        return [value, f"{low} to {high}", f"{found.p_value:.3g} ({found.test})"]

    def _pairs(self) -> Table:
        """A line for each run of several that has one of the baseline's several with its seed; empty without any."""
        lines = []
        for group in self._groups:
            if group == self._reference or min(len(group), len(self._reference)) < 2:
                continue
            for run in group:
                for other in self._reference:
                    if run.seed == other.seed and same_sentences(run, other):
                        here, there, p_value = mcnemar(*_correct([run, other]))
                        words = [self.label(run, with_seed=False), str(run.seed)]
                        lines.append([*words, str(here), str(there), f"{p_value:.3g}"])
        names = ["configuration", "seed", "right here alone", "right in the baseline alone", "p (McNemar)"]
        return [names, *lines] if lines else []

    def remarks(self) -> list[str]:
        """What a reader must know to read the tables."""
        lines = [
            "Intervals: of a run, Wilson's over its sentences; of a mean, Student's t over seeds. ± is one deviation."
        ]
        if self._reference and self._baseline:
            lines.append(
                f"Baseline: the configuration of {self._baseline.name}. Differences on the same sentences; their "
                "intervals by a paired bootstrap over sentences. p, where one run meets one: McNemar's exact test, of "
                "two models and not of other seeds; where several meet several: Welch's t-test, of other seeds; where "
                "one meets several: the bootstrap. Runs of one seed are pairs of one line each; the pairs share their "
                "sentences, so that their p are not independent. Not corrected for the number of comparisons."
            )
        elif self._baseline:
            lines.append(f"The baseline {self._baseline.name} has not finished: nothing is tested.")
        if any(len({run.seed for run in group}) < len(group) for group in self._groups):
            lines.append("Some configurations have several runs of one seed, which say less than their number.")
        if any(1 < len(group) <= TOO_FEW_SEEDS for group in self._groups):
            lines.append(f"With {TOO_FEW_SEEDS} seeds or fewer, the spread over seeds is little more than a guess.")
        if any((run.metrics or {}).get("selected", "").endswith("flatters these figures") for run in self.runs):
            lines.append(
                "Some of these models were selected on the sentences they are compared on, which flatters them."
            )
        if unfinished := [run.name for run in self.runs if not run.is_finished]:
            lines.append(f"Not finished, and in no mean: {', '.join(unfinished)}.")
        return lines


def _correct(group: list[Run]) -> np.ndarray:
    return np.stack([run.correct for run in group if run.correct is not None])


def _word(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _mean(metrics: list[dict[str, Any]], name: str, digits: int) -> str:
    mean, deviation, _ = mean_interval([float(values[name]) for values in metrics])
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(metrics) > 1 else "")
