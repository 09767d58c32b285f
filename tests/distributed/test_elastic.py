"""More or fewer processes go on with a run: the same sentences and rates in every step, and nearly the same losses."""

import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import running
from tests.support.ranks import ranks_of, run_to_the_end
from tests.support.running import Finished

pytestmark = pytest.mark.slow

Train = Callable[..., Finished]


def launcher(processes: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


@pytest.fixture(scope="module")
def flags(long_job: list[object]) -> list[object]:
    """66 steps, of which the last of each epoch has 12 sentences: 48 and 12 go round for 1 to 4 processes."""
    return [*long_job, "--global_batch_size", 48, "--max_train_steps", 66, "--dropout", 0]


@pytest.fixture(scope="module")
def on_one(flags: list[object], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_to_the_end(flags, tmp_path_factory.mktemp("on-one") / "run")


@pytest.fixture(scope="module")
def stopped_on_two(flags: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, stopped amid an epoch of seven steps."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    with running(flags, run_dir, launcher(2)) as job:
        job.wait_for_step(17)
        for rank in job.ranks():
            rank.send_signal(signal.SIGTERM)
        job.wait()
    (newest,) = sorted((run_dir / "checkpoints").iterdir())[-1:]
    content = json.loads((newest / "state.json").read_text())
    assert content["world_size"] == 2
    assert 17 <= content["training_state"]["step"] < 60
    return run_dir


def assert_same_course(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got["sample_ids"] == expected["sample_ids"]
    assert len(got["curves"]) == len(expected["curves"])
    for one, other in zip(got["curves"], expected["curves"], strict=True):
        assert (one["split"], one["step"]) == (other["split"], other["step"])
        assert one.get("learning_rate") == other.get("learning_rate")
        # Sums in another order differ in the last bits, which 66 steps of training spread.
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


@pytest.mark.parametrize("processes", [1, 3, 4])
def test_another_number_of_processes_goes_on(
    processes: int, flags: list[object], on_one: dict[str, Any], stopped_on_two: Path, tmp_path: Path
) -> None:
    run_dir = Path(shutil.copytree(stopped_on_two, tmp_path / "run"))
    assert_same_course(run_to_the_end(flags, run_dir, processes=processes), on_one)
    assert json.loads((run_dir / "environment.json").read_text())["world_size"] == processes


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_takes_the_same_course(
    processes: int, flags: list[object], on_one: dict[str, Any], tmp_path: Path
) -> None:
    assert_same_course(run_to_the_end(flags, tmp_path / "run", processes=processes), on_one)


def test_three_processes_go_on_bit_for_bit(flags: list[object], tmp_path: Path) -> None:
    flags = [*flags, "--dropout", 0.1]
    with running(flags, tmp_path / "run", ranks=ranks_of(processes=3)) as job:
        job.wait_for_step(17)
        for rank in job.ranks():
            rank.kill()
        job.wait()
    undisturbed = run_to_the_end(flags, tmp_path / "undisturbed", processes=3)
    assert run_to_the_end(flags, tmp_path / "run", processes=3) == undisturbed


def test_too_many_processes_are_refused_with_the_possible_numbers(flags: list[object], train: Train) -> None:
    refused = train(*flags, "--global_batch_size", 2, launcher=launcher(3))
    (line,) = [line for line in refused.stderr.splitlines() if "error: " in line]
    assert line.endswith(
        "--global_batch_size 2 leaves some of 3 processes without a sentence: "
        "start 1 to 2 processes, or give at least 3"
    )
    assert not refused.run_dir.exists()


def test_another_batch_is_refused_with_both_values(
    long_job: list[object], stopped_on_two: Path, train: Train, tmp_path: Path
) -> None:
    run_dir = Path(shutil.copytree(stopped_on_two, tmp_path / "copy"))
    index = long_job.index("--global_batch_size")
    flags = [*long_job[:index], *long_job[index + 2 :], "--max_train_steps", 66, "--dropout", 0]
    refused = train(*flags, "--resume_from_checkpoint", "auto", run_dir=run_dir)
    assert refused.code == 2
    assert "--global_batch_size is 32 but " in refused.stderr
    assert "was trained with 48: give --global_batch_size 48 to go on" in refused.stderr
