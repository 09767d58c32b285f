"""The tables of a sweep: what each configuration has come to, and whether the best is better than the baseline."""

import shlex
from typing import Any

from sst2.evaluation.significance import mean_interval
from sst2.sweeps.finals import configurations, fresh_seeds, ranking
from sst2.sweeps.folder import SweepFolder, SweepRun
from sst2.sweeps.study import selection_metrics
from sst2.sweeps.trials import in_word, in_words
from sst2.sweeps.verdict import HOLDOUT, LEVEL, Tested, tested
from sst2.utils.console import table

Table = list[list[str]]  # the first line has the columns' names


class Report:
    """The tables as they are now, whether or not all has finished.

    Attributes:
        trials: a line for each trial.
        finals: a line for the baseline and one for each finalist; empty as long as these are not chosen.
    """

    def __init__(self, sweep: SweepFolder, names: list[str] | None) -> None:
        self._sweep, self._plan = sweep, sweep.plan
        self._tested, self._are_paired = tested(sweep, names) if names and sweep.plan.final_seeds else ([], False)
        self._selected_on = _one({_selection_split(run) for run in sweep.trials if run.metrics})
        self._reported_on = _one({run.metrics["split"] for run in sweep.trials if run.metrics})
        self._has_chosen = names is not None
        self.trials = self._trials()
        self.finals = self._finals()

    def text(self) -> str:
        """All of it in Markdown."""
        finished = sum(run.metrics is not None for run in self._sweep.trials)
        lines = [
            f"# Sweep {self._sweep.path}",
            "",
            f"{finished} of {len(self._sweep.trials)} trials have finished.",
            "",
        ]
        lines += [table(self._configurations(), markdown=True), ""]
        if self.finals:
            lines += ["## Against the baseline, on fresh seeds", "", table(self.finals, markdown=True), ""]
        return "\n".join([*lines, *self._remarks(), ""])

    @property
    def finals_missing(self) -> int:
        """How many runs of the finals have not finished."""
        return sum(run.metrics is None for one in self._tested for run in one.arm.runs)

    def _trials(self) -> Table:
        names = list(self._plan.space)
        lines = [["trial", *names, self._plan.metric, "loss", "split", "step", "status"]]
        for run in self._sweep.trials:
            found, metrics = self._sweep.flags(run) or {}, run.metrics
            line = [run.folder.name, *(in_word(found.get(name)) if found else "" for name in names)]
            if metrics:
                chosen = selection_metrics(metrics)
                figures = [f"{chosen[self._plan.metric]:.4f}", f"{chosen['loss']:.4f}"]
                line += [*figures, _selection_split(run), str(metrics["step"])]
            else:
                line += [""] * 4
            lines.append([*line, run.status])
        return lines

    def _configurations(self) -> Table:
        """A line for each configuration, the best first; those of which a trial is missing come last."""
        names = [name for name in self._plan.space if name != "seed"]
        lines = [["trials", *names, f"{self._plan.metric} ({self._selected_on})", "loss", "step", "status"]]
        ranked = ranking(self._sweep)
        others = [runs for runs in configurations(self._sweep) if runs not in ranked]
        for runs in [*ranked, *others]:
            flags = self._sweep.flags(runs[0]) or {}
            found = [run.metrics for run in runs if run.metrics]
            chosen = [selection_metrics(metrics) for metrics in found]
            line = [" ".join(run.folder.name for run in runs)]
            line += [in_word(flags.get(name)) if flags else "" for name in names]
            line += [_mean([one[name] for one in chosen]) for name in (self._plan.metric, "loss")]
            statuses = [run.status for run in runs]
            counted = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)]
            steps = " ".join(sorted({str(metrics["step"]) for metrics in found}))
            lines.append([*line, steps, statuses[0] if len(counted) == 1 else ", ".join(counted)])
        return lines

    def _finals(self) -> Table:
        names = ["settings", "runs", f"{self._plan.metric} ({self._reported_on})", "difference", "95 % interval"]
        lines = [[*names, f"p ({'paired t' if self._are_paired else 'Welch'})", "p (Holm)", f"at {LEVEL:g}"]]
        return [*lines, *map(self._final, self._tested)] if self._tested else []

    def _final(self, one: Tested) -> list[str]:
        is_baseline = one.arm.name == "baseline"
        own = {name: one.arm.flags.get(name) for name in self._plan.space if name != "seed"}
        line = [f"{one.arm.name}: {in_words(own)}", f"{len(one.values)} of {len(one.arm.runs)}", _mean(one.values)]
        found = one.difference
        if is_baseline or found is None or one.corrected is None:
            return [*line, "", "", "", "", "" if is_baseline else "not tested: not all runs have finished"]
        line += [f"{found.value:+.4f}", f"{found.low:+.4f} to {found.high:+.4f}"]
        if found.p_value != found.p_value:
            return [*line, "", "", "not tested: the seeds make no difference"]
        is_better = (found.value < 0) == (self._plan.metric == "loss")
        verdict = ("better" if is_better else "worse") if one.is_significant else "not significant"
        return [*line, f"{found.p_value:.3g}", f"{one.corrected:.3g}", verdict]

    def _remarks(self) -> list[str]:
        plan, lines = self._plan, []
        lines.append(
            f"A trial counts by its {plan.metric} on the {self._selected_on} split. The best of many is flattered by "
            "that: it was chosen by this very figure."
        )
        if self._tested:
            seeds = ", ".join(map(str, fresh_seeds(plan)))
            hypotheses = len(self._tested) - 1
            test = "those of the paired t-test" if self._are_paired else "Welch's"
            lines.append(
                f"The finals are other runs, on seeds that no trial had ({seeds}), the same for all. ± is one "
                f"standard deviation over seeds; intervals and p are {test}, of other seeds; Holm's correction is for "
                f"{hypotheses} {'comparison' if hypotheses == 1 else 'comparisons'} with the baseline."
            )
            if self._are_paired:
                lines.append(
                    "Each seed of the finals holds out sentences of its own, on which the runs of this seed are "
                    "measured: they are compared as pairs. Trials were chosen on a part of the same training data, "
                    "which may still flatter the best; finals are measured on validation sentences where there are any."
                )
            elif self._selected_on == self._reported_on:
                lines.append(
                    f"The finals are measured on the {self._reported_on} split, by which trials were chosen, which "
                    "still flatters them. With holdout_fraction under fixed, trials are chosen on sentences that are "
                    "held out of training."
                )
            if self.finals_missing:
                total = sum(len(one.arm.runs) for one in self._tested)
                lines.append(f"There is no result of {self.finals_missing} of the {total} runs of the finals.")
        elif self._has_chosen and plan.final_seeds:
            lines.append("The best settings are the baseline's, and there are no others to test against it.")
        elif plan.final_seeds:
            lines.append("The finals have not begun.")
        if self._tested and all(one.is_whole for one in self._tested):
            sign = -1 if plan.metric == "loss" else 1
            best = max(self._tested, key=lambda one: sign * mean_interval(one.values)[0])
            if best is self._tested[0]:
                lines.append("No finalist is better than the baseline.")
            else:
                file = self._sweep.path / "trials" / f"{best.arm.name.removeprefix('trial')}.yaml"
                lines.append(f"The settings that came out best: train_sst2.py --config {shlex.quote(str(file))}")
        failed = [run for run in self._sweep.trials if run.has_ended and run.metrics is None]
        if self._has_chosen and failed:
            lines.append(
                f"Chosen from {len(self._sweep.trials) - len(failed)} of {len(self._sweep.trials)} trials: the others "
                "have failed. To give them another chance, remove finals.json and finals/, and give the command again."
            )
        return lines


def _selection_split(run: SweepRun) -> str:
    metrics: dict[str, Any] = run.metrics or {}
    return HOLDOUT if HOLDOUT in metrics else str(metrics.get("split", ""))


def _one(names: set[str]) -> str:
    return " or ".join(sorted(names)) or "validation"


def _mean(values: list[float]) -> str:
    if not values:
        return ""
    mean, deviation, _ = mean_interval([float(value) for value in values])
    return f"{mean:.4f}" + (f" ± {deviation:.4f}" if len(values) > 1 else "")
