"""The start of a run of a sweep: whether there is something left to do, and with which flags."""

from collections.abc import Callable
from pathlib import Path

from sst2.sweeps.finals import arms, choose, fresh_seeds
from sst2.sweeps.folder import SweepFolder, SweepRun
from sst2.sweeps.study import ask
from sst2.sweeps.trials import Flags

TRIALS, FINALS = "trials", "finals"  # the two stages, and the folders of their runs
STAGES = (TRIALS, FINALS)


class RunInUseError(Exception):
    """A process works in the folder of a run already.

    Attributes:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} is in use by another process")
        self.folder = folder


def number_of_runs(sweep: SweepFolder, stage: str) -> int:
    """How many runs a stage has, or, as long as the finalists are not chosen, will have at most."""
    if stage == TRIALS:
        return len(sweep.trials)
    number = len(choose(sweep)) if sweep.choice.exists() else sweep.plan.finalists
    return (number + 1) * sweep.plan.final_seeds if number else 0


def runs_left(sweep: SweepFolder, stage: str) -> list[int]:
    """The numbers of the runs of a stage that have something left to do, as far as is known yet."""
    if stage == TRIALS:
        return [] if sweep.choice.exists() else [n for n, run in enumerate(sweep.trials) if not run.is_done]
    if not sweep.choice.exists():
        return list(range(number_of_runs(sweep, stage)))
    return [n for n, (run, _) in enumerate(_finals(sweep)) if not run.is_done]


def start(
    sweep: SweepFolder, stage: str, number: int, check_stop: Callable[[], object] = lambda: None
) -> tuple[SweepRun, list[str]] | None:
    """The run with this number in its stage, and the words of its command line. None if it has nothing left to do.

    Flags are written down by the first start, and read by all others: a run that was lost goes on as what it was. What
    `check_stop` raises ends the waiting for other processes of the sweep.

    Raises:
        RunInUseError: a process works on it already: what a killed driver has left behind, or another job.
        UserError: a final cannot start, since trials have not ended or none has finished, or the folder is locked for
            long.
    """
    if sweep.plan.method == "optuna":
        import optuna  # noqa: F401 - which takes seconds: not while others wait for the lock
    with sweep.locked(check_stop):
        if stage == TRIALS:
            run, flags = sweep.trials[number], None
            if sweep.choice.exists():
                return None
        else:
            choose(sweep)
            finals = _finals(sweep)
            if number >= len(finals):  # there are fewer finalists than were asked for
                return None
            run, flags = finals[number]
        if run.is_done:
            return None
        if run.is_in_use:
            raise RunInUseError(run.folder)
        if not run.flags_file.exists():
            sweep.write_flags(run, flags or _flags_of_trial(sweep, number))
        run.exit_file.unlink(missing_ok=True)
    words = ["--config", str(run.flags_file), "--output_dir", str(run.folder), "--resume_from_checkpoint", "auto"]
    if stage == TRIALS and sweep.plan.prune == "median":
        words += ["--stop_below_median", str(run.folder.parent)]
    return run, words


def _flags_of_trial(sweep: SweepFolder, number: int) -> Flags:
    return sweep.plan.flags_of(ask(sweep, number) if sweep.planned is None else sweep.planned[number])


def _finals(sweep: SweepFolder) -> list[tuple[SweepRun, Flags]]:
    """The runs of the finals with their flags, as soon as the finalists are chosen."""
    names = choose(sweep)
    if not names:
        return []
    return [
        (run, arm.flags | {"seed": seed})
        for arm in arms(sweep, names)
        for run, seed in zip(arm.runs, fresh_seeds(sweep.plan), strict=True)
    ]
