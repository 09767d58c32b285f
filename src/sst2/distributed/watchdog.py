"""Notices when training stands still, says where each rank is, and ends a job that waits for what does not come.

The main thread tells the watchdog what it does. A thread looks whether that changes; it waits for no other process, and
for no lock but Python's own (the GIL), so that it can end this one. Time in which the process was suspended does not
count.
"""

import faulthandler
import logging
import signal
import sys
import threading
import traceback
from datetime import timedelta
from typing import NoReturn

from torch import distributed
from torch.distributed import distributed_c10d

from sst2.distributed.heartbeat import ARRIVED, Heartbeat
from sst2.distributed.ranks import cpu_process_group
from sst2.utils.errors import EXIT_FAILED, EXIT_STOPPED, GO_ON, end_from_thread, lost_process
from sst2.utils.waiting import RunningTime

logger = logging.getLogger(__name__)

_FOREVER = timedelta(days=365)  # torch's own time-outs count the time of a suspension, and end the job after it


class Watchdog:
    """Prints the stacks of all threads when the main thread has stayed where it is for too long.

    With several ranks it watches from its creation on, and ends the process: before the first step, which may take as
    long as downloads, tokenizing and compiling take, only where another rank does not answer; afterwards also where one
    does not arrive.

    Args:
        timeout: seconds without progress after which it prints; after twice as long, it ends the process.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._interval = max(0.1, min(10.0, timeout / 10))
        self._clock = RunningTime(longest=2 * self._interval)
        self._activity, self._count = "the preparations", 0
        self._has_stepped = False
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._rank = 0
        self._others: list[str] = []
        self._silent_at = 0  # number of the last examination before the first step in which a rank did not answer
        self._heartbeat: Heartbeat | None = None
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            self._rank = distributed.get_rank()
            for group in {None, cpu_process_group()}:
                distributed_c10d._set_pg_timeout(_FOREVER, group)
            self._heartbeat = Heartbeat(self._interval, self._activity)
            self._begin()

    def set_activity(self, activity: str) -> None:
        """Note what the main thread does from now on, in words that name the step. Costs nothing."""
        self._activity, self._count = activity, self._count + 1
        if self._heartbeat is not None:
            self._heartbeat.activity, self._heartbeat.count = self._activity, self._count

    def step_done(self) -> None:
        """Say that a step, or a batch of an evaluation, is done: none takes much longer from now on."""
        self._has_stepped = True
        if self._thread is None:
            self._begin()

    def stop(self) -> None:
        """End the threads, and wait for them."""
        self._stopped.set()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self._thread is not None:
            self._thread.join()
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.unregister(signal.SIGALRM)

    def suspension(self) -> float:
        """For how many seconds the process was suspended lately; 0 if others can have waited for it that long."""
        seconds = self._clock.suspended(last=3 * self._timeout)
        return seconds if seconds > self._timeout else 0.0

    def _begin(self) -> None:
        faulthandler.register(signal.SIGALRM, file=2, all_threads=False)
        self._look()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def _look(self) -> float:
        """Seconds that the process has been running. Without a further look in time, a signal prints the stack.

        That is for the GIL, which some code in C may hold for good. It does not end the process, since it counts the
        time of a suspension. The signal prints the stack of the thread that it interrupts, the main one: faulthandler's
        own timer would read those of threads that are running, and crash (as after a suspension).
        """
        signal.setitimer(signal.ITIMER_REAL, self._timeout)
        return self._clock.look()

    def _watch(self) -> None:
        count, since, examined = self._count, self._look(), 0
        while not self._stopped.wait(self._interval):
            now = self._look()
            if count != self._count:
                count, since, examined = self._count, now, 0
            idle = now - since
            if idle > self._timeout * (examined + 1):
                examined += 1
                if examined == 1 or not self._has_stepped:
                    self._others = []  # what an earlier standstill has found is not true of this one
                    # In a thread: it asks the store, and printing waits as well where nobody reads what is printed.
                    threading.Thread(target=self._examine, args=(idle, examined), name="report", daemon=True).start()
            if self._heartbeat is not None and self._has_stepped and idle > 2 * self._timeout:
                self._end(idle)

    def _examine(self, idle: float, number: int) -> None:
        """Say where this rank is, and only then ask where the others are.

        Before the first step nothing is said while all of them answer. One that does not, twice in a row, is lost.
        """
        has_stepped, count = self._has_stepped, self._count
        if has_stepped:
            logger.error("%s", self._own_place(idle))
        if self._heartbeat is None:
            return
        others, is_silent = self._heartbeat.others()
        # It has gone on meanwhile, and so have the others: who has ended does not answer.
        if self._stopped.is_set() or count != self._count:
            return
        self._others = others
        if has_stepped:
            logger.error("%s", "\n".join(self._others))
        elif not is_silent:
            self._silent_at = 0
        elif number == 1 or self._silent_at != number - 1:
            self._silent_at = number
            logger.error("%s", "\n".join([self._own_place(idle), *self._others]))
        elif not self._has_stepped:  # it has not gone on meanwhile
            self._end(idle)

    def _own_place(self, idle: float) -> str:
        lines = [f"rank {self._rank} has been at {self._activity} for {idle:.0f} s"]
        for thread in threading.enumerate():
            frame = sys._current_frames().get(thread.ident or 0)
            if frame is not None and thread not in (self._thread, threading.current_thread()):
                stack = "".join(traceback.format_stack(frame)).rstrip()
                lines.append(f"rank {self._rank}, stack of thread {thread.name}:\n{stack}")
        return "\n".join(lines)

    def _end(self, idle: float) -> NoReturn:
        here = f"{idle:.0f} s at {self._activity}"
        if self._others == [ARRIVED]:
            why = f"{here}, where every other rank has arrived: the stacks above say what it was doing; {GO_ON}"
        else:
            why = lost_process("; ".join([here, *self._others[:8]]))
        if seconds := self.suspension():
            end_from_thread(EXIT_STOPPED, f"rank {self._rank}: suspended for {seconds:.0f} s, and {why}")
        end_from_thread(EXIT_FAILED, f"error: rank {self._rank}: {why}")
