"""A sweep on this machine: one run after another, each in a process of its own, and Ctrl-C that loses nothing."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from sst2.distributed.stop_requests import SIGNALS, is_ignored
from sst2.sweeps.folder import SweepFolder, SweepRun
from sst2.sweeps.starts import STAGES, RunInUseError, number_of_runs, start
from sst2.sweeps.trials import in_words
from sst2.utils.atomic_file import write_text
from sst2.utils.errors import EXIT_STOPPED, StopRequestedError

PAUSE = 1.0  # seconds from one look at a run that another process works on to the next


class Process:
    """The process of a run. A signal that asks this one to stop is handed on, and heeded when that has ended.

    Attributes:
        stopped: the name of the signal that has come; empty if none has.
    """

    def __init__(self) -> None:
        self.stopped = ""
        self._running: subprocess.Popen[bytes] | None = None
        for number in SIGNALS:
            if not is_ignored(number):
                signal.signal(number, self._forward)

    def run(self, command: Sequence[str]) -> int:
        """Run a command to its end. Returns its exit code, 128 + the signal if one has killed it."""
        self._running = subprocess.Popen(command)
        if self.stopped:  # in the moment before
            self._running.terminate()
        code = self._running.wait()
        self._running = None
        return code if code >= 0 else 128 - code

    def raise_if_stopped(self) -> None:
        """Raises StopRequestedError: a signal has come."""
        if self.stopped:
            raise StopRequestedError(f"stopped by {self.stopped}: the same command goes on")

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        self.stopped = self.stopped or signal.Signals(number).name
        if self._running is not None:  # a terminal has told it, too: it does not mind
            self._running.send_signal(number)


def run_here(sweep: SweepFolder, script: Path, launcher: Sequence[str], say: Callable[[str], object]) -> None:
    """Run all that is left of a sweep.

    Args:
        sweep: from its folder.
        script: train_sst2.py.
        launcher: flags of `accelerate launch`; without any, a run is one process, started without a launcher.
        say: is told each run that begins, or ends without a result.

    Raises:
        StopRequestedError: this process, or a run, was asked to stop; the run has saved.
        UserError: no trial has finished, or another process runs the sweep.
    """
    process = Process()
    program = [sys.executable, *(["-m", "sst2.launch", *launcher] if launcher else []), str(script)]
    with sweep.driven():
        for stage in STAGES:
            for number in range(number_of_runs(sweep, stage)):
                _run(sweep, stage, number, program, process, say)


def _run(
    sweep: SweepFolder,
    stage: str,
    number: int,
    program: Sequence[str],
    process: Process,
    say: Callable[[str], object],
) -> None:
    """Bring one run to its end, if it has something left to do."""
    while found := _start_when_free(sweep, stage, number, process, say):
        run, words = found
        flags = sweep.flags(run) or {}
        own = {name: value for name, value in flags.items() if sweep.plan.fixed.get(name) != value}
        say(f"{stage} {number + 1} of {number_of_runs(sweep, stage)}, {run.folder}: {in_words(own)}")
        code = process.run([*program, *words])
        process.raise_if_stopped()
        if code == EXIT_STOPPED:
            raise StopRequestedError(f"{run.folder} was asked to stop, and has saved: the same command goes on")
        if code and run.is_in_use:
            continue  # refused, since another one has begun while it started: what that comes to counts
        if code:
            say(f"{_ended(run, code)}: going on with the next")
        return


def _start_when_free(
    sweep: SweepFolder, stage: str, number: int, process: Process, say: Callable[[str], object]
) -> tuple[SweepRun, list[str]] | None:
    """`start`, after the end of another process that works on the run, as one does whose driver was killed."""
    has_said = False
    while True:
        process.raise_if_stopped()
        try:
            return start(sweep, stage, number, process.raise_if_stopped)
        except RunInUseError as error:
            if not has_said:
                say(f"{error}: waiting for its end")
                has_said = True
        time.sleep(PAUSE)


def _ended(run: SweepRun, code: int) -> str:
    """Note that a run has ended without a result. Returns what to say of it."""
    write_text(run.exit_file, f"{code}\n")
    return f"{run.folder} has {run.status}, as its last line says"
