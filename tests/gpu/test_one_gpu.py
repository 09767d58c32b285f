"""The job on one CUDA device, in each precision that it offers there."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.gpu_runs import assert_went_on
from tests.support.jobs import PYTHON, running
from tests.support.running import REPOSITORY, Finished

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_smoke_run_learns(precision: str, train: Callable[..., Finished]) -> None:
    configuration = REPOSITORY / "accelerate_configs" / "single_gpu.yaml"
    launcher = [str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file", str(configuration)]
    run = train("--smoke", "--mixed_precision", precision, launcher=launcher)
    assert run.code == 0, run.stderr
    environment = json.loads((run.run_dir / "environment.json").read_text())
    assert (environment["device"].split(":")[0], environment["mixed_precision"]) == ("cuda", precision)
    assert 0.85 < run.metrics["accuracy"] < 1.0
    assert run.logged("train")[-1]["peak_memory_mib"] > 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])  # fp16 has a loss scale to continue with
def test_a_stopped_run_goes_on(precision: str, train: Callable[..., Finished], tmp_path: Path) -> None:
    flags = ["--smoke", "--mixed_precision", precision, "--logging_steps", 1, "--log_sample_ids", "--dropout", 0]
    flags += ["--max_train_steps", 60]  # over 100, sums in another order are enough to change single losses by 15 %
    whole = train(*flags, run_dir=tmp_path / "whole")
    with running(flags, tmp_path / "stopped", PYTHON) as job:
        job.wait_for_step(20)
        job.process.terminate()
        assert job.wait().code == 75
        (stopped_at,) = job.checkpoints
    resumed = train(*flags, "--resume_from_checkpoint", "auto", run_dir=tmp_path / "stopped")
    assert resumed.code == 0, resumed.stderr
    assert_went_on(resumed, whole, stopped_at)
    # sums on a GPU are not repeatable to the last bit
    assert resumed.metrics["accuracy"] == pytest.approx(whole.metrics["accuracy"], abs=0.02)
