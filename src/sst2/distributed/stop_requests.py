"""Stop requests: from signals and from files in the run's folder, reduced over all ranks.

A signal sets a flag and nothing else. The loop reduces the flags of all ranks between two steps, and between two
batches of an evaluation, where all ranks can act on them together.

Nothing heavy is imported here: signals must be caught before the seconds that importing torch takes.
"""

import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from sst2.config.launcher import launched_by
from sst2.utils.console import reserve_standard_descriptors
from sst2.utils.errors import LocalError, StopRequestedError, is_lost_process

logger = logging.getLogger(__name__)

# Requests to stop, as terminals, batch systems and time limits send them; docs/resuming.md says who sends each of them,
# and what the others do. macOS has no SIGPWR.
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGPWR")
SIGNALS = tuple(signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__)
_OF_TERMINALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP)
_STOP_FILE, _LAUNCHER_GONE = 1001, 1002  # reasons to stop beside the numbers of signals
_REASONS = {int(number): number.name for number in SIGNALS}
_REASONS |= {_STOP_FILE: "the file STOP", _LAUNCHER_GONE: "the end of its launcher"}

SECONDS_BETWEEN_INTERRUPTS = 1.0  # less is one Ctrl-C that came twice, from the terminal and from a launcher
SECONDS_BETWEEN_LOOKS = 1.0  # at the run's folder, which may lie on a network


def is_ignored(number: signal.Signals) -> bool:
    """Whether the job was started to ignore a signal of its terminal: by nohup, or in the background of a script.

    Other signals are meant for the job, whatever its parent does with them: a shell's `trap '' USR1`, which is to keep
    the shell alive, is handed down as well.
    """
    return number in _OF_TERMINALS and signal.getsignal(number) == signal.SIG_IGN


@dataclass(frozen=True)
class StopFlags:
    """What all ranks have agreed to do: the same on each of them.

    Attributes:
        stop: who asked to stop; empty if nobody did.
        save: whether a checkpoint was asked for.
    """

    stop: str = ""
    save: bool = False


class StopRequests:
    """The stop flags of this process. Creating the object touches nothing; `listen` catches signals."""

    def __init__(self) -> None:
        self._stop = 0
        self._save = False
        self._trains = False  # since all ranks have agreed for the first time
        self._folder: Path | None = None
        self._looked = 0.0
        self._interrupted = 0.0
        # A launcher that dies leaves its processes behind, and nobody else would tell them.
        self._launcher = os.getppid() if launched_by() != "python" else None

    def listen(self) -> "StopRequests":
        r"""Catch `SIGNALS` from now on, but for those that the job was started to ignore. Once, in the main thread.

        SIGQUIT (Ctrl-\) and a crash of the process still end it, and first print the stacks of all threads.
        """
        # A thread reads the signals, since Python's own handlers wait for the main thread, which may be in a collective
        # operation that never ends.
        reserve_standard_descriptors()
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        threading.Thread(target=self._receive, args=(receiver, sender), name="signals", daemon=True).start()
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            if not is_ignored(number):
                signal.signal(number, _received)
        if sys.stderr is not None:  # else its number may be that of another file
            faulthandler.enable(2)
            if not is_ignored(signal.SIGQUIT):
                faulthandler.register(signal.SIGQUIT, 2, chain=True)
        return self

    def watch(self, folder: Path) -> None:
        """Look for files `STOP` and `SAVE` in the run's folder. For one rank."""
        self._folder = folder

    def reduce(self, *others: bool) -> tuple[StopFlags, list[bool]]:
        """All-reduce the flags of all ranks by their maximum. All ranks call it.

        Args:
            others: further flags of this rank, which go in the same message.

        Returns:
            The flags, and for each of the others whether it is set on any rank.
        """
        import torch
        from torch import distributed

        from sst2.distributed.ranks import cpu_process_group

        self._look()
        flags = [self._stop, int(self._save), *map(int, others)]
        if distributed.is_initialized():
            reduced = torch.tensor(flags)
            distributed.all_reduce(reduced, distributed.ReduceOp.MAX, group=cpu_process_group())
            flags = reduced.tolist()
        self._save, self._trains = False, True
        return StopFlags(_REASONS.get(flags[0], ""), bool(flags[1])), [*map(bool, flags[2:])]

    def raise_if_stopped(self) -> None:
        """For work of one process before training: there is nothing to save, and nobody to agree with.

        Raises:
            StopRequestedError: this process was asked to stop.
        """
        if self._stop:
            raise StopRequestedError(f"stopped by {_REASONS[self._stop]} before training began; nothing is lost")

    @contextmanager
    def stop_explains_errors(self) -> Iterator[None]:
        """Around all that the job does: before training, a request to stop is heeded by each process for itself.

        One that stops leaves others without it in what they do together, and that is the end that was asked for. So is
        a mistake after another process has said it, and the launcher has therefore asked the rest to stop.

        Raises:
            StopRequestedError: instead of an error that says no more than that.
        """
        try:
            yield
        except Exception as error:
            if not self._trains and (isinstance(error, LocalError) or is_lost_process(error)):
                self.raise_if_stopped()
            raise

    def _look(self) -> None:
        if self._launcher not in (None, os.getppid()):
            self._stop = self._stop or _LAUNCHER_GONE
        now = time.monotonic()
        if self._folder and now - self._looked >= SECONDS_BETWEEN_LOOKS:
            self._looked = now
            if _take(self._folder / "STOP"):
                self._stop = self._stop or _STOP_FILE
            self._save |= _take(self._folder / "SAVE")

    def _receive(self, receiver: socket.socket, _sender: socket.socket) -> None:
        while numbers := receiver.recv(64):  # `_sender` is an argument to keep it open
            for number in numbers:
                if signal.getsignal(number) is _received:  # a library may have taken the signal for its own ends
                    self._note(number)

    def _note(self, number: int) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted and now - self._interrupted >= SECONDS_BETWEEN_INTERRUPTS:
                os._exit(128 + number)  # not sys.exit: the main thread may be stuck
            self._interrupted = self._interrupted or now
        if not self._stop:
            self._stop = number
            when = " after this step, with a checkpoint" if self._trains else ""
            once_more = "; once more stops at once" if number == signal.SIGINT else ""
            logger.info("%s: stopping%s%s", _REASONS[number], when, once_more)


def _received(number: int, frame: FrameType | None) -> None:
    """The handler of a request to stop. It does nothing: the thread that reads the signals does."""


def _take(file: Path) -> bool:
    """Whether the file was there; it is gone now, so that the next start does not find it."""
    with suppress(OSError):
        file.unlink()
        return True
    return False
