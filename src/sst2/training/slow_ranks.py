"""Slow ranks: the compute and waiting time of each rank, compared at logged steps, and who makes the others wait.

Ranks take each step together: a slow one computes longer, and the others wait for it. So it is found by its own time.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed

from sst2.distributed.ranks import cpu_process_group

BLOCK = 10  # steps, at least, whose times are added up
WINDOW = 100  # steps over which ranks are compared
FEWEST = WINDOW - BLOCK + 1  # of them that are there: the last ones may be in a block that is not full yet
MARGIN = 0.10  # of the median of the other ranks' time, by which a slow rank's is longer,
MOST = 5 / 6  # in blocks with this share of the steps: a pause is in fewer of them
LASTING = 60.0  # seconds for which a rank has to be slow that only does not get the cores that it asks for
NAMED = 8  # ranks in a message, at most
STEPS, COMPUTE, ON_CORE, WAITING, TOKENS = range(5)  # columns of a block: seconds, and tokens with padding


class RankTimes:
    """This rank's times, added up to blocks of steps, which are the same steps on all ranks.

    Args:
        own_phases: those of a step in which a rank waits for no other, but for what is measured as `waiting`.
    """

    def __init__(self, own_phases: Sequence[str]) -> None:
        self._own_phases = own_phases
        self._blocks: list[np.ndarray] = []
        self._open = np.zeros(5)

    def add(self, steps: int, seconds: Mapping[str, float], on_core: Mapping[str, float], tokens: int) -> None:
        """Add what some steps took.

        Args:
            steps: their number.
            seconds: by phase, and of `waiting`.
            on_core: of the seconds by phase, those for which a CPU's thread had a core; 0 on a GPU.
            tokens: of this rank, padding included.
        """
        compute = sum(seconds[phase] for phase in self._own_phases)
        if "backward" in self._own_phases:  # which ends with the waiting
            compute -= seconds["waiting"]
        on_cores = sum(on_core[phase] for phase in self._own_phases) or compute
        self._open += (steps, compute, on_cores, seconds["waiting"] + seconds["stop_check"], tokens)
        if self._open[STEPS] >= BLOCK:
            self._blocks.append(self._open)
            self._open = np.zeros(5)

    def gather(self) -> np.ndarray | None:
        """Bring the blocks that were filled since the last call together, through host memory. All ranks call it.

        Returns:
            (blocks, ranks, 5) float64 on rank 0; None on the others, and where no block was filled.
        """
        if not self._blocks:
            return None
        own = torch.from_numpy(np.stack(self._blocks))
        self._blocks = []
        everyone = None
        if distributed.get_rank() == 0:
            everyone = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.gather(own, everyone, dst=0, group=cpu_process_group())
        if everyone is None:
            return None
        blocks: np.ndarray = torch.stack(everyone, dim=1).numpy()
        return blocks


class SlowRanks:
    """Names a rank whose own time was more than `MARGIN` longer than the median of the others' over `WINDOW` steps.

    A CPU's process that other processes take the cores from has to be so for `LASTING` seconds: on a machine with
    anything else to do, each rank is unlucky for a while.

    Args:
        hosts: of each rank.
        found: those that an earlier start has named, to which new ones are added: see `TrainingState.slow_ranks`.
        step: done so far.
    """

    def __init__(self, hosts: Sequence[str], found: list[dict[str, Any]], step: int = 0) -> None:
        self._hosts, self._found, self._step = hosts, found, step
        self._window: deque[_Block] = deque()
        self._now: set[int] = set()
        self._since: dict[int, float] = {}  # seconds for which ranks have been slow, for whatever reason
        self._slowdown: np.ndarray | None = None

    def add(self, blocks: np.ndarray) -> list[str]:
        """Compare ranks in some more blocks, (blocks, ranks, 5).

        Returns:
            What is to be said: which ranks have become slow, and which are so no longer.
        """
        named: set[int] = set()
        recovered: set[int] = set()
        for block in blocks:
            before = self._now
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

    def _add(self, columns: np.ndarray) -> None:
        block = _Block(columns)
        self._step += block.steps
        self._window.append(block)
        total = sum(each.steps for each in self._window)
        while total - self._window[0].steps >= FEWEST:
            total -= self._window.popleft().steps
        if total < FEWEST:
            return
        self._slowdown = np.median([each.longer for each in self._window], axis=0)
        slow = self._are_slow([each.longer for each in self._window], before=self._since.keys())
        self._since = {rank: self._since.get(rank, 0.0) + block.seconds for rank in slow}
        by_itself = self._are_slow([each.longer_on_core for each in self._window], before=self._now)
        lasting = {rank for rank, seconds in self._since.items() if seconds >= LASTING}
        before, self._now = self._now, by_itself | lasting
        for rank in self._now:
            entry = self._entry(rank)
            entry["first_step"] = entry["first_step"] or self._step - total + 1
            entry["last_step"] = self._step
            entry["steps"] += block.steps if rank in before else total
            entry["slowdown"] = max(entry["slowdown"], round(float(self._slowdown[rank]), 3))
            entry["lacks_cores"] = entry["lacks_cores"] and rank not in by_itself

    def _are_slow(self, longer: list[np.ndarray], before: Collection[int]) -> set[int]:
        """Ranks that took longer in enough blocks; those of `before` remain so as long as it is in half of them."""
        sizes = np.array([block.steps for block in self._window])
        share = sizes @ (np.stack(longer) > MARGIN) / sizes.sum()
        return {rank for rank in range(len(share)) if share[rank] >= (0.5 if rank in before else MOST)}

    def _entry(self, rank: int) -> dict[str, Any]:
        """What was found of a rank, to be changed in place."""
        host = self._hosts[rank]
        for entry in self._found:
            if (entry["rank"], entry["host"]) == (rank, host):
                return entry
        never = {"first_step": 0, "last_step": 0, "steps": 0, "slowdown": 0.0, "lacks_cores": True}
        self._found.append({"rank": rank, "host": host, **never})
        return self._found[-1]


class _Block:
    """Some steps of all ranks.

    Attributes:
        steps, seconds: that it has, and that they took.
        longer: (ranks,) share by which each rank computed longer than the others' median: 0.2 is a fifth more.
        longer_on_core: the same, by the time that it had cores.
    """

    def __init__(self, columns: np.ndarray) -> None:
        self.steps = int(columns[0, STEPS])
        self.seconds = float(np.median(columns[:, COMPUTE] + columns[:, WAITING]))
        self.longer = longer_than_others(columns[:, COMPUTE], columns[:, TOKENS])
        self.longer_on_core = np.minimum(self.longer, longer_than_others(columns[:, ON_CORE], columns[:, TOKENS]))


def longer_than_others(seconds: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The share by which each rank took longer than the median of the others, (ranks,).

    The smaller one of two: by its time, and by that of a token. A rank with more tokens is not slow, and one with fewer
    has no shorter steps where they are bound by launches; few sentences cannot be shared out evenly.
    """
    by_token = seconds / tokens
    times: np.ndarray = np.minimum(seconds / median_of_others(seconds), by_token / median_of_others(by_token))
    return times - 1


def median_of_others(values: np.ndarray) -> np.ndarray:
    """For each of some values, (values,), the median of all but itself, (values,)."""
    ordered, place = np.sort(values), np.argsort(np.argsort(values))
    lower, upper = (len(values) - 2) // 2, (len(values) - 1) // 2  # among the others
    middle: np.ndarray = (ordered[lower + (lower >= place)] + ordered[upper + (upper >= place)]) / 2
    return middle


def in_words(entries: Sequence[Mapping[str, Any]], when: str = "") -> str:
    """Some slow ranks with host and slowdown, the slowest first."""
    who = []
    for entry in sorted(entries, key=lambda entry: -entry["slowdown"])[:NAMED]:
        why = ", as other processes take its cores" if entry["lacks_cores"] else ""
        who.append(f"rank {entry['rank']} on {entry['host']} (+{100 * entry['slowdown']:.0f} %{when}{why})")
    return ", ".join(who) + (f" and {len(entries) - NAMED} more" if len(entries) > NAMED else "")
