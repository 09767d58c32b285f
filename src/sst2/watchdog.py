"""Notices when training stands still, and says where each rank is.

The main thread tells the watchdog where it is. A thread of each rank passes that on to the others, through the store
that the process group was formed with, so that a rank which waits for the others can name those that have not arrived.
"""

import json
import logging
import sys
import threading
import time
import traceback
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch import distributed
from torch.distributed import distributed_c10d

from sst2.ranks import group_of_hosts

logger = logging.getLogger(__name__)


class Watchdog:
    """Prints the stacks of all threads when the main thread has stayed where it is for too long.

    Args:
        timeout: seconds without progress after which it prints. After twice as long, a collective operation gives up.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._interval = max(0.1, min(10.0, timeout / 10))
        self._where = ""
        self._count = self._beats = 0
        self._since = time.monotonic()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._rank, self._world_size = 0, 1
        self._store: Any = None

    def at(self, where: str) -> None:
        """Note where the main thread is, in words that name the step. Costs nothing."""
        self._where, self._count, self._since = where, self._count + 1, time.monotonic()

    def start(self) -> None:
        """Start to watch. After the first step, which takes as long as compiling and connecting take."""
        if self._thread is not None:
            return
        if distributed.is_initialized():
            self._rank, self._world_size = distributed.get_rank(), distributed.get_world_size()
            # A client of its own: a wait of the main thread on the shared one would keep this thread out.
            store = distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
            self._store = distributed.PrefixStore("sst2.watchdog", store)
            self._store.set_timeout(timedelta(seconds=max(5.0, self._timeout)))  # of a busy host, not of a step
            for group in {None, group_of_hosts()}:
                distributed_c10d._set_pg_timeout(timedelta(seconds=2 * self._timeout), group)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        reported = 0
        while not self._stopped.wait(self._interval):
            self._tell()
            is_stuck = time.monotonic() - self._since > self._timeout
            if is_stuck and reported != self._count:
                reported = self._count
                logger.error("%s", self._report())

    def _tell(self) -> None:
        self._beats += 1
        if self._store is not None:
            post = {"beats": self._beats, "count": self._count, "at": self._where}
            with suppress(RuntimeError):  # the launcher that keeps the store may be gone; the job goes on without
                self._store.set(str(self._rank), json.dumps(post))

    def _report(self) -> str:
        lines = [f"rank {self._rank} has been at {self._where} for {time.monotonic() - self._since:.0f} s"]
        stacks = []
        for thread in threading.enumerate():
            frame = sys._current_frames().get(thread.ident or 0)
            if frame is not None and thread is not self._thread:
                stack = "".join(traceback.format_stack(frame)).rstrip()
                stacks.append(f"rank {self._rank}, stack of thread {thread.name}:\n{stack}")
        return "\n".join(lines + self._others() + stacks)

    def _others(self) -> list[str]:
        """A line for every rank that has not arrived, or does not answer."""
        if self._store is None:
            return []
        try:
            before = self._read()
            for _ in range(3):  # while the others listen, this rank must be heard as well
                self._stopped.wait(self._interval)
                self._tell()
            now = self._read()
        except RuntimeError:
            return ["where the other ranks are is not known: the process that keeps it does not answer"]
        lines = []
        for rank in range(self._world_size):
            if rank == self._rank:
                continue
            if rank not in now:
                lines.append(f"rank {rank} has not been heard of")
            elif now[rank]["beats"] == before.get(rank, {}).get("beats"):
                lines.append(f"rank {rank} does not answer; it was last at {now[rank]['at']}")
            elif now[rank]["count"] < self._count:
                lines.append(f"rank {rank} has not arrived: it is at {now[rank]['at']}")
        return lines or ["every other rank has arrived"]

    def _read(self) -> dict[int, dict[str, Any]]:
        heard = [rank for rank in range(self._world_size) if self._store.check([str(rank)])]
        return {rank: json.loads(self._store.get(str(rank))) for rank in heard}
