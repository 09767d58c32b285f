"""A rank of several that is kept busy is named by a hundred steps, in all places; where nothing is wrong, nobody is."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.jobs import BUSY_COMPUTE, Forked
from tests.support.ranks import ranks_of
from tests.support.running import Finished

pytestmark = pytest.mark.slow

STEPS = 100


@pytest.fixture
def flags(small_job: list[object]) -> list[object]:
    return [*small_job, "--global_batch_size", 64, "--max_train_steps", STEPS, "--logging_steps", 20]


def train(
    flags: list[object], folder: Path, processes: int, busy: int | None = None, configuration: str | None = None
) -> Finished:
    """Train on several ranks, of which one is `busy`."""
    ranks = ranks_of(configuration, processes)
    if busy is not None:
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(BUSY_COMPUTE.format(times=24))
        ranks[busy]["PYTHONPATH"] = str(folder)
    output, run_dir = folder.with_suffix(".output"), folder / "run"
    code = Forked([*map(str, flags), "--output_dir", str(run_dir)], output, ranks).wait()
    return Finished(code, "", output.read_text(encoding="utf-8"), run_dir)


@pytest.mark.parametrize(
    ("processes", "busy", "configuration"), [(2, 1, None), (3, 0, None), (2, 1, "deepspeed_zero2")]
)
def test_a_busy_rank_is_named(
    processes: int, busy: int, configuration: str | None, flags: list[object], tmp_path: Path
) -> None:
    run = train(flags, tmp_path / "busy", processes, busy, configuration)
    assert run.code == 0, run.stderr
    name = f"rank {busy} on {socket.gethostname()} (+"
    said = [line for line in run.stderr.splitlines() if "slow " in line]
    assert len(said) == 2, run.stderr
    line = f"step {STEPS}: slow over 100 steps, by their own time against the median of the other ranks: {name}"
    assert line in said[0]  # behind the date
    assert f"slow ranks of the run: {name}" in said[1]
    (found,) = run.metrics["slow_ranks"]
    assert (found["rank"], found["host"], found["steps"]) == (busy, socket.gethostname(), STEPS)
    assert found["slowdown"] > 0.1
    points = run.logged("train")
    assert points[-1]["slowest_rank"] == busy
    assert points[-1]["slowest_rank_slowdown"] == pytest.approx(found["slowdown"], abs=1e-3)
    for point in points:
        compute, waiting = point["rank_compute_seconds"], point["rank_waiting_seconds"]
        assert len(compute) == len(waiting) == processes
        assert compute.index(max(compute)) == busy
        if configuration is None:  # else waiting is only known of a part
            assert waiting.index(min(waiting)) == busy
    board = EventAccumulator(str(run.run_dir)).Reload()
    assert {f"train_time/rank_compute_seconds/{rank}" for rank in range(processes)} <= {*board.Tags()["scalars"]}
    assert "train_time/slowest_rank_slowdown" in board.Tags()["scalars"]
    (text,) = board.Tensors("run/slow_ranks/text_summary")
    assert (text.step, name in text.tensor_proto.string_val[0].decode()) == (STEPS, True)
    state = json.loads((run.run_dir / "checkpoints" / f"step-{STEPS:08}" / "state.json").read_text())
    assert state["training_state"]["slow_ranks"] == run.metrics["slow_ranks"]


@pytest.mark.parametrize("processes", [2, 3])
def test_a_healthy_run_names_nobody(processes: int, flags: list[object], tmp_path: Path) -> None:
    run = train([*flags, "--max_train_steps", 300], tmp_path / "healthy", processes)
    assert run.code == 0, run.stderr
    assert "slow" not in run.stderr
    assert run.metrics["slow_ranks"] == []


def test_where_ranks_wait_in_each_layer_nothing_is_claimed(flags: list[Any], tmp_path: Path) -> None:
    run = train(flags, tmp_path / "zero3", 2, busy=1, configuration="deepspeed_zero3")
    assert run.code == 0, run.stderr
    assert "slow" not in run.stderr
    assert "slow_ranks" not in run.metrics
    assert not [point for point in run.logged("train") if "rank_compute_seconds" in point]
