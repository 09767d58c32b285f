"""Optuna's study of a sweep, in a journal in the sweep's folder: each trial asks it for settings when it begins.

What other trials have come to is read from their folders and told before: nobody has to be there when a trial ends.
Optuna's samplers are used and not its pruners, since `--stop_below_median` is in the run itself, where all its
processes agree on it.
"""

import inspect
import warnings
from typing import Any

from sst2.evaluation.selection import score_of
from sst2.sweeps.folder import SweepFolder, SweepRun
from sst2.sweeps.plan import Plan, Range
from sst2.sweeps.trials import Flags
from sst2.utils.errors import UserError, first_line

_NUMBER = "trial"  # by which name Optuna's trial knows the number of ours
_TRIES_ALL = "BruteForceSampler"  # which counts what has been tried, and so draws twice where trials overlap


def require_sampler(plan: Plan) -> None:
    """Raises UserError: Optuna is not installed, or has no such sampler that a trial may ask by itself."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError("method optuna needs its package: pip install optuna") from None
    samplers = {name for name in optuna.samplers.__all__ if _needs_a_seed_alone(getattr(optuna.samplers, name))}
    samplers.discard(_TRIES_ALL)
    if plan.sampler == _TRIES_ALL:
        raise UserError(f"sampler {plan.sampler} tries all combinations: give method grid for that")
    if plan.sampler not in samplers:
        known = ", ".join(sorted(samplers))
        raise UserError(f"sampler {plan.sampler} is none of Optuna's that need a seed alone: give one of {known}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=_sampler(plan, 0))  # in memory
    try:
        for number in range(3):  # some samplers import their package when there is something to learn from
            study.tell(study.ask(_distributions(plan)), number)
    except (ImportError, RuntimeError) as error:
        raise UserError(f"sampler {plan.sampler} cannot be used here ({first_line(error)}): give another") from None


def ask(sweep: SweepFolder, number: int) -> Flags:
    """The settings of a trial, after Optuna has been told what others have come to. To be called under the lock.

    A trial that has asked before, and was killed before it wrote them down, gets the same ones.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plan = sweep.plan
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(sweep.journal)))
    study = optuna.create_study(
        study_name="sweep",  # not the folder's name: that may change
        storage=storage,
        sampler=_sampler(plan, number),
        direction="minimize" if plan.metric == "loss" else "maximize",
        load_if_exists=True,
    )
    runs, params = sweep.trials, None
    for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
        if trial.user_attrs.get(_NUMBER) == number:
            params = trial.params
        elif _NUMBER in trial.user_attrs:
            _tell(study, trial.number, runs[trial.user_attrs[_NUMBER]], plan)
    if params is None:
        asked = study.ask(_distributions(plan))
        asked.set_user_attr(_NUMBER, number)
        params = asked.params
    return {name: _value(plan.space[name], value) for name, value in params.items()}


def _tell(study: Any, number: int, run: SweepRun, plan: Plan) -> None:
    """Tell what a run has come to, if that stays: one that has failed is started again, and Optuna is told but once."""
    from optuna.trial import TrialState

    if run.is_pruned:
        study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
    elif run.metrics is not None:
        score = score_of(selection_metrics(run.metrics), plan.metric)
        study.tell(number, -score if plan.metric == "loss" else score, skip_if_finished=True)
    elif run.is_done:
        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)


def selection_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Those of `metrics.json` by which a run's evaluations are chosen from: the hold-out's, else validation's."""
    chosen: dict[str, Any] = metrics.get("holdout", metrics)
    return chosen


def _sampler(plan: Plan, number: int) -> Any:
    """Made anew for each trial, in whatever process: with a seed of its own, or all would draw the same."""
    import optuna

    kind = getattr(optuna.samplers, plan.sampler)
    # trials that run at the same time keep away from each other
    options = {"constant_liar": True} if plan.sampler == "TPESampler" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it, or an option of it, is experimental
        return kind(seed=(plan.seed * 1_000_003 + number) % 2**32, **options)


def _needs_a_seed_alone(kind: Any) -> bool:
    parameters = inspect.signature(kind).parameters if inspect.isclass(kind) else {}
    return "seed" in parameters and all(one.default is not one.empty for one in parameters.values())


def _distributions(plan: Plan) -> dict[str, Any]:
    return {name: _distribution(one) for name, one in plan.space.items()}


def _distribution(one: list[Any] | Range) -> Any:
    from optuna import distributions

    if not isinstance(one, Range):
        return distributions.CategoricalDistribution(list(map(str, one)))
    if one.is_whole:
        return distributions.IntDistribution(int(one.low), int(one.high), one.log, int(one.step or 1))
    # to the last of its values: Optuna warns of a step that does not lead to the end
    high = one.value(one.count - 1) if one.count else one.high
    return distributions.FloatDistribution(one.low, high, one.log, one.step)


def _value(one: list[Any] | Range, value: Any) -> Any:
    """What a flag is given for what Optuna has chosen, which knows the values of a list by their words."""
    if not isinstance(one, Range):
        return one[list(map(str, one)).index(value)]
    # the very number that a grid has, not 0.15000000000000002
    return value if one.step is None else one.value(round((value - one.low) / one.step))
