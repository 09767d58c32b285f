"""The finals: settings of the best trials and of the baseline, each on the same fresh seeds.

A trial's own score flatters it, since the best of many was chosen by it. Fresh seeds do not know of that choice.
"""

import json
from dataclasses import dataclass
from itertools import count, islice
from statistics import mean
from typing import Any

from sst2.config.flag_groups import TrainingArguments
from sst2.evaluation.selection import score_of
from sst2.sweeps.folder import SweepFolder, SweepRun
from sst2.sweeps.plan import Plan
from sst2.sweeps.study import selection_metrics
from sst2.sweeps.trials import Flags, settings_of_run
from sst2.utils.atomic_file import write_json
from sst2.utils.errors import UserError


@dataclass(frozen=True)
class Arm:
    """What runs on all fresh seeds: the settings of a trial, or the baseline's.

    Attributes:
        name: `baseline`, or that of the trial.
        flags: of its runs, but for the seed.
        runs: one for each seed, in their order.
    """

    name: str
    flags: Flags
    runs: list[SweepRun]


def fresh_seeds(plan: Plan) -> list[int]:
    """The smallest seeds from 1 on that no trial has had."""
    used = {plan.value("seed", number) for number in range(plan.counts.get("seed", 0))}
    used.add(plan.fixed.get("seed", TrainingArguments.seed))
    return list(islice((seed for seed in count(1) if seed not in used), plan.final_seeds))


def choose(sweep: SweepFolder) -> list[str]:
    """The names of the trials whose settings are tested, the best first; the first call decides. Under the lock.

    Trials that differ by their seed alone are one configuration, by the mean of all of them. A configuration of which a
    trial has failed or was stopped is not among the best.

    Raises:
        UserError: not all trials have ended, or none has finished.
    """
    if sweep.choice.exists():
        return list(json.loads(sweep.choice.read_text(encoding="utf-8"))["trials"])
    if waiting := [run.folder.name for run in sweep.trials if not run.has_ended]:
        raise UserError(
            f"{len(waiting)} of {len(sweep.trials)} trials of {sweep.path} have not ended, {waiting[0]} for one: the "
            "finals begin when all have; the same command goes on with them"
        )
    ranked = ranking(sweep)
    if not ranked:
        raise UserError(f"no trial of {sweep.path} has finished: see what they have said, and start it again")
    names = [runs[0].folder.name for runs in ranked if not _is_baseline(sweep, runs[0])][: sweep.plan.finalists]
    write_json(sweep.choice, {"trials": names, "seeds": fresh_seeds(sweep.plan)})
    return names


def configurations(sweep: SweepFolder) -> list[list[SweepRun]]:
    """The trials, those together that differ by their seed alone."""
    groups: dict[str, list[SweepRun]] = {}
    for run in sweep.trials:
        flags = sweep.flags(run)
        groups.setdefault(run.folder.name if flags is None else _configuration(sweep, flags), []).append(run)
    return list(groups.values())


def ranking(sweep: SweepFolder) -> list[list[SweepRun]]:
    """The trials of each configuration that has a result of each of its seeds, the best configuration first.

    A random search may draw the same settings and seed twice: such repeats are averaged, and one of them is enough.
    """

    def by_seed(runs: list[SweepRun]) -> list[list[dict[str, Any]]]:
        seeds: dict[str, list[dict[str, Any]]] = {}
        for run in runs:
            found = seeds.setdefault(str((sweep.flags(run) or {}).get("seed")), [])
            if run.metrics and not run.is_pruned:
                found.append(selection_metrics(run.metrics))
        return list(seeds.values())

    def merit(runs: list[SweepRun]) -> tuple[float, float]:
        seeds = by_seed(runs)
        score = mean(mean(score_of(one, sweep.plan.metric) for one in found) for found in seeds)
        return score, -mean(mean(one["loss"] for one in found) for found in seeds)

    return sorted((runs for runs in configurations(sweep) if all(by_seed(runs))), key=merit, reverse=True)


def arms(sweep: SweepFolder, names: list[str]) -> list[Arm]:
    """The baseline first, then the settings of each of these trials."""
    trials = {run.folder.name: run for run in sweep.trials}
    flags = {"baseline": sweep.plan.flags_of(sweep.plan.baseline)}
    flags |= {f"trial{name}": sweep.flags(trials[name]) or {} for name in names}
    return [
        Arm(
            name,
            {flag: value for flag, value in own.items() if flag != "seed"},
            [SweepRun(sweep.path / "finals" / f"{name}-seed{seed}") for seed in fresh_seeds(sweep.plan)],
        )
        for name, own in flags.items()
    ]


def _is_baseline(sweep: SweepFolder, run: SweepRun) -> bool:
    own, baseline = sweep.flags(run) or {}, sweep.plan.flags_of(sweep.plan.baseline)
    return _configuration(sweep, own) == _configuration(sweep, baseline)


def _configuration(sweep: SweepFolder, flags: Flags) -> str:
    """The same for all runs that differ by their seed alone, however their flags say it."""
    settings = settings_of_run(flags | {"output_dir": "."}, sweep.parser, str(sweep.path))
    return repr(sorted((name, value) for name, value in settings.values().items() if name != "seed"))
