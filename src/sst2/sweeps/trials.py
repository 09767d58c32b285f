"""The settings of trials: all combinations or random ones, the same at every start, checked before the first run."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from sst2.config.arguments import settings_of
from sst2.config.run_flags import FlagParser
from sst2.config.settings import Settings
from sst2.sweeps.plan import Plan, Range
from sst2.utils.errors import UserError

MOST_COMBINATIONS = 2**62  # of which a random search draws without repeats: NumPy numbers them by 64 bits
Flags = dict[str, Any]  # values by name; None leaves a flag open


def settings_of_trials(plan: Plan) -> list[Flags]:
    """What each trial of a grid or of a random search has of its own, in their order.

    A random search over a space that can be counted has no combination twice; each trial of another one draws from a
    generator of its own, and so does each of one whose combinations are too many to be drawn twice.
    """
    counts = tuple(plan.counts.values())
    places: Iterable[Sequence[int]]  # the numbers of a trial's values, in the order of the space
    if plan.method == "grid":
        places = product(*map(range, counts))
    elif not 0 < math.prod(counts) <= MOST_COMBINATIONS:
        return [_drawn(plan, number) for number in range(plan.trials)]
    else:
        drawn = np.random.default_rng(plan.seed).choice(math.prod(counts), plan.trials, replace=False)
        places = np.stack(np.unravel_index(drawn, counts), axis=1).tolist()
    return [{name: plan.value(name, at) for name, at in zip(plan.space, place, strict=True)} for place in places]


def _drawn(plan: Plan, number: int) -> Flags:
    shares = np.random.default_rng([plan.seed, number]).random(len(plan.space)).tolist()
    return {
        name: one.at(share)
        if isinstance(one, Range) and one.step is None
        else plan.value(name, int(share * plan.counts[name]))
        for (name, one), share in zip(plan.space.items(), shares, strict=True)
    }


def check_runs(plan: Plan, parser: FlagParser, file: Path) -> None:
    """Check the flags of every run as the run itself will, but for what needs data.

    Of trials that Optuna will choose, each value of a list and both ends of a range are checked, once each.

    Raises:
        UserError: a run cannot be; it names the file, the trial and the flag.
    """
    if plan.final_seeds:
        settings_of_run(plan.flags_of(plan.baseline), parser, f"{file}: baseline")
    trials = _corners(plan) if plan.method == "optuna" else settings_of_trials(plan)
    for number, settings in enumerate(trials):
        who = "space" if plan.method == "optuna" else f"trial {number}"
        settings_of_run(plan.flags_of(settings), parser, f"{file}: {who}: {in_words(settings)}")


def settings_of_run(flags: Flags, parser: FlagParser, who: str) -> Settings:
    """The settings of a run with these flags. Raises UserError, which begins with `who`, where they cannot work."""
    try:
        return settings_of(parser, flags)
    except (ValueError, OSError) as error:
        raise UserError(f"{who}: {error}") from None


def _corners(plan: Plan) -> Iterator[Flags]:
    ends = {name: [one.low, one.high] if isinstance(one, Range) else one for name, one in plan.space.items()}
    first = {name: values[0] for name, values in ends.items()}
    yield first
    for name, values in ends.items():
        yield from (first | {name: value} for value in values[1:])


def in_words(settings: Flags) -> str:
    """The settings as a line for people: `learning_rate 3e-05, dropout 0.1`."""
    return ", ".join(f"{name} {in_word(value)}" for name, value in settings.items())


def in_word(value: Any) -> str:
    """A value for people, numbers with four digits; those that are left open said so."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "left open" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
