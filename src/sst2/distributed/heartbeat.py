"""Each rank's heartbeat, and what it does, in the store that the process group was formed with.

The store is kept by one process, and its clients wait without a bound for one that has stopped to answer. So only
threads that nobody waits for touch it.
"""

import json
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch import distributed
from torch.distributed import distributed_c10d

from sst2.utils.waiting import call_with_timeout

ARRIVED = "every other rank has arrived"
UNKNOWN = "where the other ranks are is not known: the process that keeps it does not answer"


class Heartbeat:
    """Tells the other ranks every `interval` seconds that this one runs, and what it does.

    Attributes:
        activity, count: what the main thread does, and how often that has changed; to be set by the user.
    """

    def __init__(self, interval: float, activity: str) -> None:
        self.activity, self.count = activity, 0
        self._interval, self._beats = interval, 0
        self._rank, self._world_size = distributed.get_rank(), distributed.get_world_size()
        self._store: Any = None
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Beat no more. Returns at once: the thread may be waiting for a store that does not answer."""
        self._stopped.set()

    def others(self) -> tuple[list[str], bool]:
        """A line for every rank that has not come as far as this one, and whether one of them does not answer at all.

        Takes a few beats, and not much longer when the store does not answer.
        """
        return call_with_timeout(5 * self._interval + 5, self._ask, ([UNKNOWN], True))

    def _beat(self) -> None:
        # A client of its own: a wait of the main thread on the shared one would keep this thread out.
        store = distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        store = distributed.PrefixStore("sst2.distributed.watchdog", store)
        store.set_timeout(timedelta(seconds=max(5.0, 10 * self._interval)))
        self._store = store
        while not self._stopped.is_set():
            self._beats += 1
            post = {"beats": self._beats, "count": self.count, "activity": self.activity}
            with suppress(RuntimeError):  # the launcher that keeps the store may be gone; the job goes on without
                self._store.set(str(self._rank), json.dumps(post))
            self._stopped.wait(self._interval)

    def _ask(self) -> tuple[list[str], bool]:
        before = self._read()
        self._stopped.wait(3 * self._interval)
        now = self._read()
        lines, is_silent = [], False
        for rank in range(self._world_size):
            if rank == self._rank:
                continue
            if rank not in now:
                lines.append(f"rank {rank} has not been heard of")
                is_silent = True
            elif now[rank]["beats"] == before.get(rank, {}).get("beats"):
                lines.append(f"rank {rank} does not answer; it was last at {now[rank]['activity']}")
                is_silent = True
            elif now[rank]["count"] < self.count:
                lines.append(f"rank {rank} has not arrived: it is at {now[rank]['activity']}")
        return lines or [ARRIVED], is_silent

    def _read(self) -> dict[int, dict[str, Any]]:
        if self._store is None:
            raise RuntimeError("the store has not been reached")
        heard = [rank for rank in range(self._world_size) if self._store.check([str(rank)])]
        return {rank: json.loads(self._store.get(str(rank))) for rank in heard}
