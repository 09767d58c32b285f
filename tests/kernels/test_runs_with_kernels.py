"""Whole runs with all kernels, in Triton's interpreter: attention, blocks and AdamW; and their checkpoints."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.running import Finished

triton = pytest.importorskip("triton", reason="triton exists for Linux only")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not triton.knobs.runtime.interpret, reason="where there is a GPU, kernels are compiled for it: tests/gpu"
    ),
]

Train = Callable[..., Finished]
FEW = ["--smoke", "--global_batch_size", 3, "--max_train_steps", 2, "--checkpointing_steps", 1, "--max_eval_samples", 2]
FEW += ["--logging_steps", 1, "--learning_rate", 1e-2, "--warmup_ratio", 0, "--mixed_precision", "no"]
KERNELS = ["--cuda_graphs", "yes", "--kernels", "triton"]


@pytest.fixture(autouse=True)
def large_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes 5 ms for each, whatever its size."""
    from sst2.kernels import adamw, block

    monkeypatch.setattr(adamw, "SIZE", 1 << 16)
    for name, value in {"NORM_ROWS": 16, "ROWS": 16, "PROGRAMS": 4}.items():
        monkeypatch.setattr(block, name, value)


def without_its_end(run_dir: Path) -> Path:
    """A copy of a run as it is when it is killed after step 1, whose checkpoint it has."""
    killed = Path(shutil.copytree(run_dir, run_dir.with_name(f"{run_dir.name}-killed")))
    shutil.rmtree(killed / "checkpoints" / "step-00000002")
    shutil.rmtree(killed / "model")
    (killed / "metrics.json").unlink()
    return killed


def losses(run: Finished) -> list[float]:
    assert run.code == 0, run.stderr
    return [line["loss"] for split in ("train", "validation") for line in run.logged(split)]


def test_losses_are_those_of_torchs_operations_and_either_goes_on_from_the_other(
    train_here: Train, tmp_path: Path
) -> None:
    flags = [*FEW, "--dropout", 0]
    eager, kernels = train_here(*flags, run_dir=tmp_path / "eager"), train_here(*flags, *KERNELS)
    assert losses(kernels) == pytest.approx(losses(eager), rel=1e-5)
    assert "--kernels triton" not in kernels.stderr  # no warning that some do not work
    assert "optimizer.step()" not in kernels.stderr  # nor that the schedule misses steps
    for begun, more in ((kernels, []), (eager, KERNELS)):
        resumed = train_here(*flags, *more, "--resume_from_checkpoint", "auto", run_dir=without_its_end(begun.run_dir))
        assert losses(resumed) == pytest.approx(losses(eager), rel=1e-5)


def test_a_resumed_run_is_the_uninterrupted_run(train_here: Train) -> None:
    flags = [*FEW, *KERNELS, "--dropout", 0.1]
    run = train_here(*flags)
    assert run.code == 0, run.stderr
    resumed = train_here(*flags, "--resume_from_checkpoint", "auto", run_dir=without_its_end(run.run_dir))
    assert losses(resumed) == losses(run)
    weights = [(one.run_dir / "model" / "model.safetensors").read_bytes() for one in (run, resumed)]
    assert weights[0] == weights[1]
