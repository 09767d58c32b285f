"""Slow ranks: the compute and waiting time of each rank, compared at logged steps, and who makes the others wait.

Ranks take each step together: a slow one computes longer, and the others wait for it. So it is found by its own time.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed

from sst2.distributed.ranks import cpu_process_group

BLOCK = 10  # steps, at least, whose times are added up
WINDOW = 100  # steps over which ranks are compared
FEWEST = WINDOW - BLOCK + 1  # of them that are there: the last ones may be in a block that is not full yet
MARGIN = 0.10  # of the median of the other ranks' time, by which a slow rank's is longer,
MOST = 0.8  # in blocks with this share of the steps: a pause, or a rank that is unlucky for a while, is in few of them
NAMED = 8  # ranks in a message, at most
STEPS, COMPUTE, WAITING, TOKENS = range(4)  # columns of a block: seconds, and tokens with padding


class RankTimes:
    """This rank's times, added up to blocks of steps, which are the same steps on all ranks.

    Args:
        own_phases: those of a step in which a rank waits for no other, but for what is measured as `waiting`.
    """

    def __init__(self, own_phases: Sequence[str]) -> None:
        self._own_phases = own_phases
        self._blocks: list[np.ndarray] = []
        self._open = np.zeros(4)

    def add(self, steps: int, seconds: Mapping[str, float], tokens: int) -> None:
        """Add what some steps took: seconds by phase and of `waiting`, and the tokens of this rank with padding."""
        compute = sum(seconds[phase] for phase in self._own_phases)
        if "backward" in self._own_phases:  # which ends with the waiting
            compute -= seconds["waiting"]
        self._open += (steps, compute, seconds["waiting"] + seconds["stop_check"], tokens)
        if self._open[STEPS] >= BLOCK:
            self._blocks.append(self._open)
            self._open = np.zeros(4)

    def gather(self) -> np.ndarray | None:
        """Bring the blocks that were filled since the last call together, through host memory. All ranks call it.

        Returns:
            (blocks, ranks, 4) float64 on rank 0; None on the others, and where no block was filled.
        """
        if not self._blocks:
            return None
        own = torch.from_numpy(np.stack(self._blocks))
        self._blocks = []
        everyone = None
        if distributed.get_rank() == 0:
            everyone = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.gather(own, everyone, dst=0, group=cpu_process_group())
        return None if everyone is None else torch.stack(everyone, dim=1).numpy()


class SlowRanks:
    """Names a rank whose own time was more than `MARGIN` longer than the median of the others' over `WINDOW` steps.

    It has to be so by the time of a step and by that of a token, since a rank with more tokens is not slow, and one
    with fewer has no shorter steps where they are bound by launches: with few sentences, tokens cannot be shared
    evenly.

    Args:
        hosts: of each rank.
        found: those that an earlier start has named, to which new ones are added: see `TrainingState.slow_ranks`.
        step: done so far.
    """

    def __init__(self, hosts: Sequence[str], found: list[dict[str, Any]], step: int = 0) -> None:
        self._hosts, self._found, self._step = hosts, found, step
        self._window: deque[tuple[int, np.ndarray]] = deque()  # steps of a block, and by how much each rank was slower
        self._now: set[int] = set()
        self._slowdown: np.ndarray | None = None

    def add(self, blocks: np.ndarray) -> list[str]:
        """Compare ranks in some more blocks, (blocks, ranks, 4).

        Returns:
            What is to be said: which ranks have become slow, and which are so no longer.
        """
        named: set[int] = set()
        recovered: set[int] = set()
        for block in blocks:
            before = set(self._now)
            self._add(block)
            named |= self._now - before
            recovered |= before - self._now
        said = []
        if named:
            who = in_words([self._entry(rank) for rank in named])
            said.append(f"slow over {WINDOW} steps, by their own time against the median of the other ranks: {who}")
        if recovered:
            said.append(f"no longer slow: {in_words([self._entry(rank) for rank in recovered], ' at worst')}")
        return said

    def averages(self, blocks: np.ndarray) -> dict[str, Any]:
        """What a logged point holds: seconds of a step by rank, in these blocks, and how slow the slowest rank is.

        The latter is over the last `WINDOW` steps: the share by which its own time is longer than the others' median.
        """
        totals = blocks.sum(axis=0)
        of_a_step = (totals / totals[:, [STEPS]]).round(7)
        values: dict[str, Any] = {
            "rank_compute_seconds": of_a_step[:, COMPUTE].tolist(),
            "rank_waiting_seconds": of_a_step[:, WAITING].tolist(),
        }
        if self._slowdown is not None:
            slowest = int(self._slowdown.argmax())
            values |= {"slowest_rank": slowest, "slowest_rank_slowdown": float(self._slowdown[slowest])}
        return values

    def _add(self, block: np.ndarray) -> None:
        steps, compute = int(block[0, STEPS]), block[:, COMPUTE]
        self._step += steps
        by_token = compute / block[:, TOKENS]
        longer = np.minimum(compute / median_of_others(compute), by_token / median_of_others(by_token)) - 1
        self._window.append((steps, longer))
        total = sum(size for size, _ in self._window)
        while total - self._window[0][0] >= FEWEST:
            total -= self._window.popleft()[0]
        if total < FEWEST:
            return
        sizes = np.array([size for size, _ in self._window])
        each = np.stack([longer for _, longer in self._window])
        share = sizes @ (each > MARGIN) / total
        self._slowdown = np.median(each, axis=0)
        before = self._now
        self._now = {rank for rank in range(len(share)) if share[rank] >= (0.5 if rank in before else MOST)}
        for rank in self._now:
            entry = self._entry(rank)
            entry["first_step"] = entry["first_step"] or self._step - total + 1
            entry["steps"] += steps if rank in before else total
            entry["last_step"] = self._step
            entry["slowdown"] = max(entry["slowdown"], round(float(self._slowdown[rank]), 3))

    def _entry(self, rank: int) -> dict[str, Any]:
        """What was found of a rank, to be changed in place."""
        host = self._hosts[rank]
        for entry in self._found:
            if (entry["rank"], entry["host"]) == (rank, host):
                return entry
        self._found.append({"rank": rank, "host": host, "first_step": 0, "last_step": 0, "steps": 0, "slowdown": 0.0})
        return self._found[-1]


def median_of_others(values: np.ndarray) -> np.ndarray:
    """For each of some values, (values,), the median of all but itself, (values,)."""
    ordered, place = np.sort(values), np.argsort(np.argsort(values))
    lower, upper = (len(values) - 2) // 2, (len(values) - 1) // 2  # among the others
    middle: np.ndarray = (ordered[lower + (lower >= place)] + ordered[upper + (upper >= place)]) / 2
    return middle


def in_words(entries: Sequence[Mapping[str, Any]], when: str = "") -> str:
    """Some slow ranks with host and slowdown, the slowest first."""
    slowest = sorted(entries, key=lambda entry: -entry["slowdown"])[:NAMED]
    who = [f"rank {each['rank']} on {each['host']} (+{100 * each['slowdown']:.0f} %{when})" for each in slowest]
    return ", ".join(who) + (f" and {len(entries) - NAMED} more" if len(entries) > NAMED else "")
