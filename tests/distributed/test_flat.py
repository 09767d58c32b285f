"""Steps in three parts, with functions in place of CUDA graphs: the same run on any number of ranks, and resumed."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.test_strategies import HUNDRED, SAMPLE, assert_same_course
from tests.support.jobs import results
from tests.support.ranks import run_to_the_end, train_ranks

pytestmark = pytest.mark.slow

SPLIT = ["--cuda_graphs", "yes"]
# Three epochs of 105 sentences, each with a last step of 5, which three ranks have two or one of.
SHORT_STEPS = [*SAMPLE, "--max_train_samples", 105, "--max_train_steps", 9, "--checkpointing_steps", 4]


@pytest.fixture(scope="module")
def on_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of one process, operation by operation."""
    return run_to_the_end(SAMPLE, tmp_path_factory.mktemp("on-one") / "run", "single_cpu")


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_any_number_of_ranks_takes_the_course_of_one(processes: int, on_one: dict[str, Any], tmp_path: Path) -> None:
    run = train_ranks([*SAMPLE, *SPLIT], tmp_path / "run", "multi_cpu" if processes > 1 else None, processes)
    assert run.code == 0, run.stderr
    assert_same_course(run.run_dir, on_one)
    assert "steps are captured in " in run.stderr
    if processes > 1:
        assert all(0 < line["waiting_share"] < 1 for line in run.logged("train"))


@pytest.mark.parametrize("per_device", [1, 4, 50])  # with 1, two of three ranks run a filler in the last step
def test_short_steps_with_and_without_accumulation(per_device: int, tmp_path: Path) -> None:
    flags = [*SHORT_STEPS, "--per_device_train_batch_size", per_device]
    eager = train_ranks(flags, tmp_path / "eager")
    expected = [line["loss"] for line in eager.logged("train")]
    for processes in (1, 3):
        run = train_ranks([*flags, *SPLIT], tmp_path / str(processes), processes=processes)
        assert run.code == 0, run.stderr
        losses = [line["loss"] for line in run.logged("train")]
        assert losses == pytest.approx(expected, rel=1e-5)


def without_its_end(run_dir: Path) -> Path:
    """A copy of a run as it is when it is killed after its last checkpoint but one."""
    killed = Path(shutil.copytree(run_dir, run_dir.with_name(f"{run_dir.name}-killed")))
    shutil.rmtree(max((killed / "checkpoints").glob("step-*")))
    shutil.rmtree(killed / "model")
    (killed / "metrics.json").unlink()
    return killed


@pytest.mark.parametrize("precision", ["no", "bf16"])  # whose rounded weights are to be those of the checkpoint
def test_a_resumed_run_is_the_uninterrupted_run(precision: str, tmp_path: Path) -> None:
    flags = [*SHORT_STEPS, *SPLIT, "--dropout", 0.1, "--gradient_compression", "bf16"]
    way = ("multi_cpu", 2, precision)
    undisturbed = run_to_the_end(flags, tmp_path / "run", *way)
    assert run_to_the_end(flags, without_its_end(tmp_path / "run"), *way) == undisturbed


def test_other_ways_go_on_from_its_checkpoints_and_it_from_theirs(on_one: dict[str, Any], tmp_path: Path) -> None:
    flags = [*SAMPLE, "--checkpointing_steps", 20]
    for name, first, second in (
        ("from", ([*flags, *SPLIT], "multi_cpu", 2), (flags, "deepspeed_zero2", 2)),
        ("onto", (flags, "multi_cpu", 3), ([*flags, *SPLIT], "multi_cpu", 2)),
        ("alone", ([*flags, *SPLIT], "multi_cpu", 3), ([*flags, *SPLIT], None, 1)),
    ):
        run_to_the_end(first[0], tmp_path / name, *first[1:])
        resumed = without_its_end(tmp_path / name)
        run_to_the_end(second[0], resumed, *second[1:])
        assert_same_course(resumed, on_one)


def test_gradients_sent_in_bf16_change_little(on_one: dict[str, Any], tmp_path: Path) -> None:
    run = train_ranks([*SAMPLE, *SPLIT, "--gradient_compression", "bf16"], tmp_path / "run", processes=2)
    assert run.code == 0, run.stderr
    expected = [line["loss"] for line in on_one["curves"]]
    differences = [abs(line["loss"] / loss - 1) for line, loss in zip(run.logged("train"), expected, strict=False)]
    assert differences[0] < 1e-6  # no gradient has been sent before the first loss
    assert 1e-8 < max(differences) < 1e-3


def test_steps_that_are_not_finite_change_nothing(tmp_path: Path, small_job: list[Any], broken_model: Path) -> None:
    flags = [*small_job, *SPLIT, "--global_batch_size", 16, "--model_name_or_path", broken_model]
    run = train_ranks(flags, tmp_path / "run", processes=2)
    assert run.code == 3, run.stderr
    assert run.logged("train")[-1]["skipped_steps"] == 9


def test_bf16_is_trained(tmp_path: Path) -> None:
    run = train_ranks([*SAMPLE, *HUNDRED, *SPLIT], tmp_path / "run", "multi_cpu", 2, "bf16")
    assert run.code == 0, run.stderr
    assert json.loads((run.run_dir / "environment.json").read_text())["mixed_precision"] == "bf16"
    assert all(math.isfinite(line["loss"]) for line in results(run.run_dir)["curves"])
