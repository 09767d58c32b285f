"""The plan of a sweep: `space.yaml`, read and checked before anything is begun.

Values are taken as they are written, by the types of the flags of train_sst2.py; docs/sweep.md has an example.

Nothing heavy is imported here, so that a mistake is answered at once.
"""

import difflib
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sst2.config.arguments import OF_ONE_START
from sst2.config.flag_groups import NAMES
from sst2.config.run_flags import FlagParser
from sst2.config.yaml_file import OVERRIDES, as_written, mistakes_of, value_of, values_of

MOST_VALUES = 100_000  # of a range with a step
MOST_TRIALS = 1000  # tasks that a job array of SLURM may have, where nobody has changed that
_OF_THE_SWEEP = {"output_dir", "stop_below_median", *OF_ONE_START}
# What decides on which sentences a run is evaluated, and by what: runs that differ in it cannot be compared.
_OF_ALL_RUNS = set(
    "smoke dataset_name dataset_config_name dataset_revision validation_file test_file sentence_column label_column "
    "label_names max_eval_samples holdout_fraction metric_for_best_model".split()
)
_OF_THE_HOLDOUT = {"train_file", "max_train_samples"}  # what it is cut from
_METHODS = ("grid", "random", "optuna")


@dataclass(frozen=True)
class Range:
    """The values from `low` to `high`, both included, of a flag that is a number.

    Attributes:
        log: whether 1 to 10 is as long as 10 to 100.
        step: between two values that can be; None where all can.
        is_whole: whether the values are whole numbers.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    is_whole: bool = False

    @property
    def count(self) -> int:
        """How many values a range with a step has; 0 for any other."""
        return 0 if self.step is None else math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def value(self, number: int) -> Any:
        """The value with this number in a range with a step, 0 for the lowest, rounded to twelve digits."""
        assert self.step is not None
        value = self.low + number * self.step
        return int(value) if self.is_whole else float(f"{value:.12g}")

    def at(self, share: float) -> Any:
        """The value that a share of the range, 0 to less than 1, is below of. For a range without a step."""
        end = self.high + 1 if self.is_whole else self.high
        value = self.low * (end / self.low) ** share if self.log else self.low + share * (end - self.low)
        return min(int(value), int(self.high)) if self.is_whole else min(value, self.high)


@dataclass(frozen=True)
class Plan:
    """What a sweep is to do.

    Attributes:
        method: how trials get their settings: all combinations, drawn at random, or asked of Optuna.
        trials: how many.
        seed: of the drawing; runs have their own, `--seed`.
        sampler: of Optuna, by the name of its class.
        prune: whether trials that are worse than the median of others at the same step are stopped: `median` or `none`.
        finalists: how many of the best settings are tested against the baseline.
        final_seeds: on how many fresh seeds each of them runs; 0 for no test.
        fixed: flags of all runs by name.
        baseline: flags of the baseline, over the fixed ones; None leaves a flag open that is fixed for the trials.
        space: flags that trials differ in; a value that is None leaves the flag open.
    """

    method: str = "grid"
    trials: int = 0
    seed: int = 0
    sampler: str = "TPESampler"
    prune: str = "none"
    finalists: int = 1
    final_seeds: int = 5
    fixed: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)
    space: dict[str, list[Any] | Range] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """How many values each flag of the space has; 0 where they cannot be counted."""
        return {name: one.count if isinstance(one, Range) else len(one) for name, one in self.space.items()}

    def value(self, name: str, number: int) -> Any:
        """The value with this number, 0 for the first, of a flag of the space whose values can be counted."""
        one = self.space[name]
        return one.value(number) if isinstance(one, Range) else one[number]

    def flags_of(self, settings: dict[str, Any]) -> dict[str, Any]:
        """All flags of a run with these settings beside the fixed ones; those that are left open are not there."""
        contradicted = {OVERRIDES.get(name, "") for name, value in settings.items() if value is not None}
        fixed = {name: value for name, value in self.fixed.items() if name not in contradicted}
        return {name: value for name, value in (fixed | settings).items() if value is not None}

    @property
    def metric(self) -> str:
        """By which runs are compared."""
        return str(self.fixed.get("metric_for_best_model", "accuracy"))


def read_plan(file: Path, parser: FlagParser) -> Plan:
    """Read a plan, and check everything but the settings of whole trials.

    Raises:
        UserError: the file cannot be read, is not YAML, or has a name or a value that cannot be; it names both.
    """
    with mistakes_of(str(file)):
        content = as_written(file.read_bytes())
        known = list(Plan.__dataclass_fields__)
        for name in content:
            if name not in known:
                match = difflib.get_close_matches(name, known, n=1)
                hint = f", did you mean {match[0]}?" if match else f": it has {', '.join(known)}"
                wrong = ": flags stand under fixed or space" if name in NAMES else hint
                raise ValueError(f"{name} is no part of a sweep{wrong}")
        fixed = values_of(parser, _section(content, "fixed"))
        space = {name: _dimension(parser, name, written) for name, written in _section(content, "space").items()}
        plan = Plan(
            method=_word(content, "method", _METHODS),
            trials=_number(content, "trials", 0),
            seed=_number(content, "seed", 0),
            sampler=str(content.get("sampler", Plan.sampler)),
            prune=_word(content, "prune", ("none", "median")),
            finalists=_number(content, "finalists", 1),
            final_seeds=_number(content, "final_seeds", 0),
            fixed=fixed,
            baseline={name: _value(parser, name, word) for name, word in _section(content, "baseline").items()},
            space=space,
        )
        _check(plan, content)
        return plan


def _check(plan: Plan, content: dict[str, Any]) -> None:
    if not plan.space:
        raise ValueError("space is missing: name the flags that trials differ in, each with a list or a range")
    for section, names in (("fixed", plan.fixed), ("baseline", plan.baseline), ("space", plan.space)):
        for name in names:
            if name in _OF_THE_SWEEP:
                raise ValueError(f"{section}: {name} is set by the sweep: leave it out")
            shared = name in _OF_ALL_RUNS or (name in _OF_THE_HOLDOUT and plan.fixed.get("holdout_fraction"))
            if section != "fixed" and shared:
                raise ValueError(f"{section}: runs that differ in {name} cannot be compared: put it under fixed")
    for name in plan.space:
        if name in plan.fixed:
            raise ValueError(f"space: {name} stands under fixed as well: leave one")
    if "seed" in plan.baseline:
        raise ValueError("baseline: seed is set by the sweep, to fresh ones: leave it out")
    if "seed" in plan.space and plan.method != "grid":
        raise ValueError("space: seed is no setting to search for: leave it out, or give method grid")
    if "sampler" in content and plan.method != "optuna":
        raise ValueError(f"sampler is of method optuna, and this is {plan.method}: leave it out")
    _check_number_of_trials(plan)
    if plan.final_seeds == 1:
        raise ValueError("final_seeds 1 cannot be tested: give 2 at least, such as 5, or 0 for no test")


def _check_number_of_trials(plan: Plan) -> None:
    endless = [name for name, count in plan.counts.items() if not count]
    count = math.prod(filter(None, plan.counts.values()))
    if plan.method == "grid":
        if endless:
            raise ValueError(f"space: {endless[0]} has no end of values: give a list, a step, or method random")
        if plan.trials:
            raise ValueError(f"trials: a grid has all combinations, {count} here: leave it out, or give method random")
    elif not plan.trials:
        raise ValueError(f"trials is missing: say how many, such as 20, for method {plan.method}")
    elif plan.method == "random" and not endless and plan.trials > count:
        raise ValueError(f"trials {plan.trials} are more than the {count} combinations: give fewer, or method grid")
    most = count if plan.method == "grid" else plan.trials
    if most > MOST_TRIALS:
        raise ValueError(f"{most} trials are more than the {MOST_TRIALS} that a job array takes: give fewer")
    if plan.final_seeds and plan.finalists > most:
        raise ValueError(f"finalists {plan.finalists} are more than the {most} trials: give fewer")
    if (plan.finalists + 1) * plan.final_seeds > MOST_TRIALS:
        raise ValueError(f"finalists and final_seeds make more than the {MOST_TRIALS} runs that a job array takes")


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    section = content.get(name) or {}
    if not isinstance(section, dict):
        raise ValueError(f"{name} must hold lines of the form 'learning_rate: 3e-5'")
    return section


def _word(content: dict[str, Any], name: str, words: tuple[str, ...]) -> str:
    word = content.get(name, getattr(Plan, name))
    if word not in words:
        raise ValueError(f"{name} is {word}: give one of {', '.join(words)}")
    return str(word)


def _number(content: dict[str, Any], name: str, least: int) -> int:
    written = content.get(name, getattr(Plan, name))
    if not str(written).isdecimal() or int(written) < least:
        raise ValueError(f"{name} is {written}: give a whole number, {least} at least")
    return int(written)


def _dimension(parser: FlagParser, name: str, written: Any) -> list[Any] | Range:
    if isinstance(written, dict):
        return _range(parser, name, written)
    if not isinstance(written, list) or not written:
        value_of(parser, name, written)  # which says what else is wrong with it
        raise ValueError(f"space: {name} has one value: give a list or a range of them, or put it under fixed")
    values = [_value(parser, name, word) for word in written]
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ValueError(f"space: {name} has {written[number]} twice: leave one")
    return values


def _value(parser: FlagParser, name: str, written: Any) -> Any:
    """A value by its flag's type; None where it leaves the flag open."""
    value = value_of(parser, name, written)
    return None if value == [] else value


def _range(parser: FlagParser, name: str, written: dict[str, Any]) -> Range:
    if name not in NAMES:
        value_of(parser, name, "")  # which says so
    is_whole = parser.action(name).type is int
    if parser.action(name).type not in (int, float):
        raise ValueError(f"space: {name} is no number, which alone has a range: give a list")
    for key in written:
        if key not in ("min", "max", "log", "step"):
            raise ValueError(f"space: {name} has {key}, but a range has min and max, and log or step")
    if not {"min", "max"} <= written.keys():
        raise ValueError(f"space: {name} lacks {'min' if 'min' not in written else 'max'}: a range has both")
    low, high = (value_of(parser, name, written[key]) for key in ("min", "max"))
    step = value_of(parser, name, written["step"]) if "step" in written else None
    for key, value in (("min", low), ("max", high), ("step", step)):
        if value is not None and not abs(value) <= sys.float_info.max / 2:  # nor is NaN
            raise ValueError(f"space: {name} has {key} {written[key]}: give a finite number")
    log = {"true": True, "false": False}.get(str(written.get("log", "false")).lower())
    if log is None:
        raise ValueError(f"space: {name} has log {written['log']}: give true or false")
    if not low < high:
        raise ValueError(f"space: {name} has min {written['min']}, which is not below max {written['max']}")
    if log and low <= 0:
        raise ValueError(f"space: {name} has min {written['min']}, which has no logarithm: give more than 0, or no log")
    if step is not None and (log or not 0 < step <= high - low):
        way_out = "leave log or step out" if log else "give more than 0, and no more than the range"
        raise ValueError(f"space: {name} has step {written['step']}: {way_out}")
    if step is not None and (high - low) / step >= MOST_VALUES:
        raise ValueError(
            f"space: {name} has step {written['step']}, too short for this range: give a longer one, or none"
        )
    return Range(low, high, log, step, is_whole)
