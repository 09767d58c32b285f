"""Ways to train take turns, and one that fails costs the others nothing."""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.throughput import DEFAULTS, MODELS, VARIANTS, describe, model_config
from benchmarks.trainer_baseline import mixed
from benchmarks.turns import Loop, Maker, Round, Step, Turns, add_arguments, measure
from benchmarks.whole_job import by_latest
from sst2.models.architecture import skeleton


def stepwise(folder: Path, batch_size: int) -> Step:
    """Steps of a hundredth of a second."""

    def step() -> tuple[int, int]:
        time.sleep(0.01)
        return batch_size, 10 * batch_size

    return step


def looping(folder: Path, batch_size: int, steps: int) -> Loop:
    """A loop of others that breaks off after some steps."""

    def run(after_step: Any) -> None:
        for _ in range(steps):
            after_step(batch_size, 20 * batch_size)

    return Loop(run)


def never(folder: Path, batch_size: int) -> Step:
    time.sleep(600)
    raise AssertionError


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser, rounds=2, steps=3)
    parser.add_argument("--model", default="modernbert")
    return parser.parse_args([*words, "--small", "--warm_up", "2"])


@pytest.mark.slow
def test_ways_take_turns_and_those_that_fail_are_left_out(tmp_path: Path) -> None:
    makers: dict[str, Maker] = {
        "steps": stepwise,
        "loop": partial(looping, steps=1000),
        "breaks off": partial(looping, steps=6),  # in the second round
        "never ready": never,
    }
    seen: list[int] = []
    turns = measure(
        tmp_path, makers, arguments("--ready_within", "30"), lambda turns: seen.append(len(turns.rounds["loop"]))
    )
    assert seen == [1, 2]
    assert {name: len(rounds) for name, rounds in turns.rounds.items()} == {
        "steps": 2,
        "loop": 2,
        "breaks off": 1,
        "never ready": 0,
    }
    assert turns.failed == {"breaks off": "exit code 1", "never ready": "not ready within 30 s"}
    assert [(each.sentences, each.tokens) for each in turns.rounds["loop"]] == [(96, 1920)] * 2
    assert all(each.seconds > 0.03 for each in turns.rounds["steps"])
    assert turns.warm_up["steps"].sentences == 64


def test_ratios_are_of_real_tokens_and_the_strongest_baseline_is_named() -> None:
    def rounds(*seconds: float) -> list[Round]:
        return [Round(each, 100, 1000, 1.0, 0, cpu_seconds=1.0) for each in seconds]

    turns = Turns(
        {
            "plain_bf16": rounds(4, 8),
            "trainer_bf16_grouped": rounds(2, 2),
            "trainer_bf16_grouped_compiled": [],
            "this_job_bf16_packed": rounds(1, 2),
        },
        failed={"trainer_bf16_grouped_compiled": "exit code 1"},
    )
    turns.warm_up = {name: Round(9.0, 0, 0, 0.0, 2, 1.0) for name in turns.rounds}
    turns.peaks = {"float32": [1e9], "bfloat16": [1e9]}
    figures = describe(turns, arguments())
    assert figures["ratios"]["this_job_bf16_packed / plain_bf16"]["by_round"] == [4.0, 4.0]
    assert figures["ratios"]["this_job_bf16_packed / trainer_bf16_grouped"]["median"] == 1.5
    assert figures["ratios_by_cpu_seconds"]["this_job_bf16_packed / plain_bf16"]["by_round"] == [1.0, 1.0]
    assert figures["strongest_baseline_bf16"] == "trainer_bf16_grouped"
    assert figures["failed"] == turns.failed
    assert figures["trainer_bf16_grouped"]["warm_up_seconds_beyond_its_steps"] == pytest.approx(9 - 2 * 2 / 3)


def test_trainer_is_there_grouped_and_rebalanced_compiled_and_not() -> None:
    for sampling in ("grouped", "rebalanced"):
        for precision in ("fp32", "bf16"):
            names = {f"trainer_{precision}_{sampling}", f"trainer_{precision}_{sampling}_compiled"}
            assert names <= set(DEFAULTS) <= set(VARIANTS)


def test_batches_grouped_by_length_come_mixed_and_stay_as_they_are() -> None:
    indices = [*range(4 * 120 - 1)]  # from long to short in each 50 batches of four
    order = mixed(indices, 4)
    assert sorted(order) == indices
    starts = order[: 4 * 50 : 4]
    assert sorted(starts) == [*range(0, 4 * 50, 4)]
    assert [order[place : place + 4] for place in range(0, 4 * 50, 4)] == [[*range(one, one + 4)] for one in starts]
    for first in range(46):
        assert sorted(start // 40 for start in starts[first : first + 5]) == [0, 1, 2, 3, 4]  # one of every ten batches


@pytest.mark.parametrize(("model", "millions"), [*zip(MODELS, (67, 109, 150), strict=True)])
def test_models_are_of_base_size_and_tiny_ones_of_the_same_kind(model: str, millions: int) -> None:
    base, small = model_config(model, small=False), model_config(model, small=True)
    assert round(sum(weight.numel() for weight in skeleton(base).parameters()) / 1e6) == millions
    assert (type(small), small.vocab_size) == (type(base), base.vocab_size)
    assert small.hidden_size < base.hidden_size


def test_a_moment_counts_for_the_part_that_began_last() -> None:
    spans = [("fit", 1.0, 9.0), ("steps", 2.0, 5.0), ("captures", 3.0, 4.0), ("steps", 6.0, 8.0), ("export", 9.0, 9.5)]
    seconds = by_latest(spans, first=0.0, last=10.0)
    assert seconds == {"fit": 3.0, "steps": 4.0, "captures": 1.0, "export": 0.5, "rest": 1.5}
