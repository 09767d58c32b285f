"""Configurations: runs that differ by their seed alone, on the same data, with means over their seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sst2.config.flag_groups import NAMES
from sst2.evaluation.run_results import Run, same_sentences
from sst2.evaluation.significance import mean_interval

# Settings that are worked out where no run is given them, each with the one that it overrides: what follows from a
# difference is no other one.
CONSEQUENCES = {
    "max_train_steps": "num_train_epochs",  # and of the batch size and the number of sentences
    "num_warmup_steps": "warmup_ratio",
    "batching": None,  # padded where a model cannot be packed
    "dataset_config_name": None,  # of --dataset_name
}
# What decides which sentences a hold-out is drawn from.
_DATA = "dataset_name dataset_config_name dataset_revision train_file max_train_samples max_eval_samples".split()
_DATA += ["holdout_fraction"]


@dataclass(frozen=True)
class Summary:
    """A figure over the seeds of a configuration, each the mean of its repeats.

    Attributes:
        deviation: sample standard deviation over seeds; None of one seed.
        low, high: 95 % interval of the mean, by Student's t; None of one seed.
    """

    mean: float
    deviation: float | None
    low: float | None
    high: float | None


@dataclass(eq=False)
class Configuration:
    """Runs of the same settings but for the seed, on the same data.

    Attributes:
        number: by which tables and plot call it, from 1.
        runs: all of it, whether they have finished or not.
        evaluated_on: number of the set of sentences that its finished runs share, from 0; None if none has finished.
        training_data: fingerprint of what they were trained on, where that alone tells them from another one.
    """

    number: int
    runs: list[Run] = field(default_factory=list)
    evaluated_on: int | None = None
    training_data: str | None = None

    @property
    def finished(self) -> list[Run]:
        """Those of its runs that have metrics."""
        return [run for run in self.runs if run.is_finished]

    @property
    def by_seed(self) -> dict[int, list[Run]]:
        """Finished runs by their seed. Several of one seed are repeats, which say little of other seeds."""
        seeds: dict[int, list[Run]] = {}
        for run in self.finished:
            seeds.setdefault(int(run.settings["seed"]), []).append(run)
        return seeds

    def values(self, name: str) -> list[float]:
        """A metric of each seed, its repeats averaged; empty if no run has it."""
        seeds = [
            [run.metrics[name] for run in runs if run.metrics and name in run.metrics] for runs in self.by_seed.values()
        ]
        return [float(np.mean(values)) for values in seeds if values]

    def summary(self, name: str) -> Summary | None:
        """Mean of a metric over seeds, with deviation and interval; None if no run has it."""
        values = self.values(name)
        if not values:
            return None
        mean, deviation, interval = mean_interval(values)
        low, high = interval or (None, None)
        return Summary(mean, deviation if interval else None, low, high)

    def correct(self, seed: int) -> np.ndarray:
        """(sentences,): whether the run of a seed is right, bool; of several, the share that is, float."""
        runs = [run.correct for run in self.by_seed[seed] if run.correct is not None]
        return runs[0] if len(runs) == 1 else np.mean(runs, axis=0)


def names_of_settings(runs: Sequence[Run]) -> list[str]:
    """The settings that can make a difference between these runs, without the seed and without consequences.

    Where one run is given a value that others work out, all are compared by that value, and not by what it overrides.
    """
    names = [name for name in NAMES if name != "seed" and any(name in run.settings for run in runs)]
    dropped = set()
    for name, overridden in CONSEQUENCES.items():
        is_given = any(name in run.given for run in runs)
        dropped.add(overridden if is_given else name)
    return [name for name in names if name not in dropped]


def group_runs(runs: Sequence[Run], names: Sequence[str], sets: Sequence[Sequence[Run]]) -> list[Configuration]:
    """The configurations of runs that have begun, in the order of their first runs.

    Args:
        runs: of any status.
        names: of the settings that make a difference.
        sets: the finished runs by the sentences that they were evaluated on, of `evaluation_sets`.
    """
    set_of = {run: number for number, members in enumerate(sets) for run in members}
    groups: dict[tuple[Any, ...], Configuration] = {}
    trained_on = _training_data(runs, names)
    begun = [run for run in runs if run.settings]
    for run in sorted(begun, key=lambda run: not run.is_finished):  # an unfinished one joins a group, whatever the set
        settings = _key(run, names)
        key = (*settings, trained_on[run], set_of.get(run))
        if run not in set_of:
            key = next((known for known in groups if known[: len(settings)] == settings), key)
        group = groups.setdefault(key, Configuration(0, [], set_of.get(run), trained_on[run]))
        group.runs.append(run)
    place = {run: number for number, run in enumerate(runs)}
    for group in groups.values():
        group.runs.sort(key=place.__getitem__)
    ordered = sorted(groups.values(), key=lambda group: place[group.runs[0]])
    for number, group in enumerate(ordered, start=1):
        group.number = number
    return ordered


def evaluation_sets(runs: Sequence[Run]) -> list[list[Run]]:
    """Finished runs by the sentences that they were evaluated on, which alone makes their accuracies comparable.

    Hold-outs that seeds draw from the same data count as one set, though each seed has sentences of its own.
    """
    sets: list[list[Run]] = []
    for run in [run for run in runs if run.is_finished]:
        members = next((members for members in sets if _fits(run, members)), None)
        if members is None:
            sets.append([run])
        else:
            members.append(run)
    return sets


def is_holdout(run: Run) -> bool:
    """Whether the run was evaluated on sentences that its seed has drawn."""
    return run.metrics is not None and run.metrics["split"] == "holdout"


def _fits(run: Run, members: list[Run]) -> bool:
    first = members[0]
    if not (is_holdout(run) and is_holdout(first)):
        return same_sentences(run, first)
    if any(run.settings.get(name) != first.settings.get(name) for name in _DATA):
        return False
    same_seed = next((member for member in members if member.seed == run.seed), None)
    return same_seed is None or same_sentences(run, same_seed)


def _training_data(runs: Sequence[Run], names: Sequence[str]) -> dict[Run, str | None]:
    """Fingerprints of training data, where those of one configuration contradict each other; None elsewhere.

    A hold-out leaves each seed other sentences. A run that keeps no checkpoint has no fingerprint, which says nothing.
    """
    known: dict[tuple[str, ...], set[str]] = {}
    for run in runs:
        if run.training_data and not run.settings.get("holdout_fraction"):
            known.setdefault(_key(run, names), set()).add(run.training_data)
    differ = {key for key, fingerprints in known.items() if len(fingerprints) > 1}
    return {run: run.training_data if _key(run, names) in differ else None for run in runs}


def _key(run: Run, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(repr(run.settings.get(name)) for name in names)
