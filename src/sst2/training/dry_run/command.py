"""`--dry_run`: a run is measured in a folder that is removed, and what it will need is printed."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from sst2.config.launcher import launched_by
from sst2.training.dry_run.estimate import Estimate
from sst2.training.dry_run.rehearsal import Rehearsal, TrainingLoop
from sst2.training.dry_run.report import as_json, as_table, figures
from sst2.training.dry_run.workload import Workload
from sst2.training.trainer import Trainer
from sst2.utils.console import say, standard_output


def dry_run(trainer: Trainer, loop: TrainingLoop) -> None:
    """Measure a run that is ready to begin, and print what all of it will need. All ranks call it, the main one prints.

    The trainer writes to a folder that `resume_or_start` has made for it, and the run's folder removes. What stays is
    what any start keeps for the next: token ids, models and data in caches, copies in `--stage_dir`.

    Raises:
        LocalError: there is not enough memory, for what and with the way out.
        StopRequestedError: somebody has asked for the end.
        UserError: something fails that would fail in the run.
    """
    start_up = seconds_since_start()
    workload = Workload.of(trainer)
    with _only_warnings_of_the_run():
        measured = Rehearsal(trainer, loop, workload).measure(start_up)
    if trainer.accelerator.is_main_process:
        found = figures(trainer, Estimate.of(trainer, workload, measured))
        with standard_output():
            say(as_json(found) if trainer.settings.json else as_table(found))


def seconds_since_start() -> float:
    """Since this process's launcher was started, or the process itself where it has none."""
    started: float = psutil.Process().create_time()
    if launched_by() != "python":
        with suppress(psutil.Error, OSError):
            started = psutil.Process(os.getppid()).create_time()
    return time.time() - started


@contextmanager
def _only_warnings_of_the_run() -> Iterator[None]:
    """Leave out what a run says of its checkpoints and results: here they are gone at once."""
    project, own = logging.getLogger("sst2"), logging.getLogger("sst2.training.dry_run")
    before = project.level
    project.setLevel(max(before, logging.WARNING))
    own.setLevel(before)
    try:
        yield
    finally:
        project.setLevel(before)
        own.setLevel(logging.NOTSET)
