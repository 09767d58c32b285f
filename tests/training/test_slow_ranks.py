"""Who is named for times that are given: a rank that computes longer, and nobody for noise, pauses or more tokens."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sst2.training.slow_ranks import COMPUTE, ON_CORE, STEPS, TOKENS, WAITING, RankTimes, SlowRanks, median_of_others

HOSTS = ["n1", "n1", "n2", "n2"]


def blocks_of(
    compute: np.ndarray, steps: int = 10, tokens: np.ndarray | None = None, on_core: np.ndarray | None = None
) -> np.ndarray:
    """Blocks of steps in which each rank has computed so long, (blocks, ranks) milliseconds a step."""
    blocks = np.zeros((*compute.shape, 5))
    blocks[:, :, STEPS] = steps
    blocks[:, :, COMPUTE] = compute * steps / 1000
    blocks[:, :, ON_CORE] = (compute if on_core is None else on_core) * steps / 1000
    blocks[:, :, WAITING] = 0.001 * steps
    blocks[:, :, TOKENS] = 400 * steps if tokens is None else tokens * steps
    return blocks


def judged(compute: np.ndarray, **others: Any) -> list[dict[str, Any]]:
    """Those who are named when all blocks come one by one."""
    found: list[dict[str, Any]] = []
    ranks = SlowRanks(HOSTS[: compute.shape[1]], found)
    for block in blocks_of(compute, **others):
        ranks.add(block[None])
    return found


@pytest.mark.parametrize("ranks", [2, 3, 4, 7, 8])
def test_the_median_of_the_others_leaves_out_oneself(ranks: int) -> None:
    draw = np.random.default_rng(ranks)
    for values in (draw.random(ranks), np.ones(ranks), draw.integers(3, size=ranks).astype(float)):
        expected = [np.median(np.delete(values, rank)) for rank in range(ranks)]
        assert median_of_others(values).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_slow_rank_is_named_at_the_hundredth_step_and_once(ranks: int) -> None:
    found: list[dict[str, Any]] = []
    slow_ranks = SlowRanks(HOSTS[:ranks], found, step=1000)
    times = np.full((30, ranks), 5.0)
    times[:, -1] = 6.0
    said = [slow_ranks.add(block[None]) for block in blocks_of(times)]
    host = HOSTS[ranks - 1]
    line = f"slow over 100 steps, by their own time against the median of the other ranks: rank {ranks - 1} on {host}"
    assert said == [[]] * 9 + [[f"{line} (+20 %)"]] + [[]] * 20
    expected = {"first_step": 1001, "last_step": 1300, "steps": 300, "slowdown": 0.2, "lacks_cores": False}
    assert found == [{"rank": ranks - 1, "host": host, **expected}]


def test_half_of_the_ranks_may_be_slow() -> None:
    times = np.full((10, 4), 5.0)
    times[:, 2:] = 7.0
    assert [(each["rank"], each["host"]) for each in judged(times)] == [(2, "n2"), (3, "n2")]


@pytest.mark.parametrize("share", [1.05, 1.09])
def test_a_tenth_is_the_margin(share: float) -> None:
    assert judged(np.full((20, 3), 5.0) * [1, share, 1]) == []
    assert judged(np.full((20, 3), 5.0) * [1, 1.11, 1]) != []


def noise(draw: np.random.Generator, blocks: int, ranks: int) -> np.ndarray:
    """Steps that are twice as long now and then, as on cores that are shared."""
    steps: np.ndarray = 5.0 * (1 + (draw.random((blocks, 10, ranks)) < 0.2))
    mean: np.ndarray = steps.mean(axis=1)
    return mean


def pauses(draw: np.random.Generator, blocks: int, ranks: int) -> np.ndarray:
    """One rank that stands still for a second in one block of ten, as where it captures graphs or saves."""
    times = np.full((blocks, ranks), 5.0)
    times[::10, 0] += 100
    return times


def bad_luck(draw: np.random.Generator, blocks: int, ranks: int) -> np.ndarray:
    """Ranks that are slow by turns, half of a window each."""
    times = np.full((blocks, ranks), 5.0)
    for block in range(blocks):
        times[block, block // 5 % ranks] = 10.0
    return times


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("how", [noise, pauses, bad_luck])
def test_nobody_is_named_for_what_passes(how: Callable[..., np.ndarray], ranks: int) -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        assert judged(how(draw, 50, ranks)) == []


def test_a_rank_that_is_slow_in_some_steps_of_all_blocks_is_named() -> None:
    draw = np.random.default_rng(0)
    times = noise(draw, 20, 4)
    times[:, 1] += 2.0  # five more milliseconds in four of ten steps
    assert [each["rank"] for each in judged(times)] == [1]


def test_tokens_excuse_and_do_not_accuse() -> None:
    tokens = np.array([400, 600, 400])
    assert judged(np.full((20, 3), 5.0) * [1, 1.5, 1], tokens=tokens) == []  # it has more to do
    assert judged(np.full((20, 3), 5.0), tokens=np.array([400, 200, 400])) == []  # launches take as long for few
    assert [each["rank"] for each in judged(np.full((20, 3), 5.0) * [1, 2.0, 1], tokens=tokens)] == [1]


def test_it_recovers_and_may_become_slow_again_on_the_same_line() -> None:
    times = np.full((60, 3), 5.0)
    times[:15, 1] = times[40:, 1] = 10.0
    found: list[dict[str, Any]] = []
    slow_ranks = SlowRanks(HOSTS, found)
    said = {10 * number: slow_ranks.add(block[None]) for number, block in enumerate(blocks_of(times), start=1)}
    said = {step: lines for step, lines in said.items() if lines}
    assert [*said] == [100, 210, 490]  # when nearly all, not even half, and again nearly all of the window is slow
    assert said[210] == ["no longer slow: rank 1 on n1 (+100 % at worst)"]
    steps = 200 + 210  # the last step of each time that it is slow, and the first of the window in which it was found
    assert found == [
        {
            "rank": 1,
            "host": "n1",
            "first_step": 1,
            "last_step": 600,
            "steps": steps,
            "slowdown": 1.0,
            "lacks_cores": False,
        }
    ]


def test_blocks_that_come_at_once_are_judged_one_by_one() -> None:
    times = np.full((60, 3), 5.0)
    times[20:35, 1] = 10.0
    at_once: list[dict[str, Any]] = []
    said = SlowRanks(HOSTS, at_once).add(blocks_of(times))
    assert [line.split(":")[0] for line in said] == [
        "slow over 100 steps, by their own time against the median of the other ranks",
        "no longer slow",
    ]
    assert at_once == judged(times)


def test_a_later_start_adds_to_what_an_earlier_one_has_found() -> None:
    times = np.full((10, 2), 5.0) * [1, 2]
    found: list[dict[str, Any]] = []
    SlowRanks(["n1", "n2"], found).add(blocks_of(times))
    SlowRanks(["n1", "n2"], found, step=500).add(blocks_of(times))
    SlowRanks(["n1", "n7"], found, step=900).add(blocks_of(times))
    assert [(each["host"], each["first_step"], each["last_step"], each["steps"]) for each in found] == [
        ("n2", 1, 600, 200),
        ("n7", 901, 1000, 100),
    ]


def test_a_logged_point_has_the_times_of_a_step_by_rank_and_the_slowest() -> None:
    slow_ranks = SlowRanks(HOSTS, [])
    blocks = blocks_of(np.full((5, 4), 5.0) * [1, 1, 1.06, 1])
    slow_ranks.add(blocks)
    expected = {"rank_compute_seconds": [0.005, 0.005, 0.0053, 0.005], "rank_waiting_seconds": [0.001] * 4}
    assert slow_ranks.averages(blocks) == expected  # not yet a hundred steps
    slow_ranks.add(blocks)
    assert slow_ranks.averages(blocks) == expected | {
        "slowest_rank": 2,
        "slowest_rank_slowdown": pytest.approx(0.06),
    }


def test_blocks_of_other_sizes_make_a_window_of_about_a_hundred_steps() -> None:
    # As on a GPU, which is read every 16 steps and at logged points: four steps are in a block that is not full yet.
    found: list[dict[str, Any]] = []
    slow_ranks = SlowRanks(HOSTS[:2], found)
    for _ in range(5):
        assert slow_ranks.add(blocks_of(np.array([[5.0, 6.0]]), steps=16)) == []
    assert slow_ranks.add(blocks_of(np.array([[5.0, 6.0]]), steps=16)) != []


def test_who_does_not_get_cores_is_named_where_that_lasts() -> None:
    times = np.full((1300, 3), 5.0)
    times[:, 1] = 9.0
    found: list[dict[str, Any]] = []
    slow_ranks = SlowRanks(HOSTS, found)
    said = {
        10 * number: lines
        for number, block in enumerate(blocks_of(times, on_core=np.full((1300, 3), 5.0)), start=1)
        if (lines := slow_ranks.add(block[None]))
    }
    # Steps of 6 ms, the others' computing and waiting, from the 100th on.
    assert [*said] == [10_090]
    assert said[10_090][0].endswith("rank 1 on n1 (+80 %, as other processes take its cores)")
    assert found[0]["lacks_cores"]
    assert judged(times[:1000], on_core=np.full((1000, 3), 5.0)) == []
    (busy,) = judged(times[:10])
    assert not busy["lacks_cores"]


def test_own_time_is_that_of_the_phases_in_which_nobody_is_waited_for() -> None:
    seconds = {"data": 1.0, "forward": 2.0, "backward": 4.0, "graph": 0.0, "optimizer": 8.0}
    seconds |= {"stop_check": 16.0, "waiting": 3.0}
    on_core = dict.fromkeys(seconds, 0.5)
    on_gpu = dict.fromkeys(seconds, 0.0)
    for own_phases, own, cores in (
        (("data", "forward", "backward", "graph", "optimizer"), 12.0, 2.5),
        (("data", "forward"), 3.0, 1.0),
    ):
        for clock, expected in ((on_core, cores), (on_gpu, own)):
            times = RankTimes(own_phases)
            for _ in range(3):
                times.add(4, seconds, clock, 100)
            (block,) = times._blocks
            assert block.tolist() == [12, 3 * own, 3 * expected, 3 * 19.0, 300]


def test_nothing_is_sent_as_long_as_no_block_is_full() -> None:
    assert RankTimes(("data",)).gather() is None  # without a process group
