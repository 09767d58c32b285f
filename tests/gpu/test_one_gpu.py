"""The job on one CUDA device, in each precision that it offers there."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import REPOSITORY, Finished

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_smoke_run_learns(precision: str, train: Callable[..., Finished]) -> None:
    configuration = REPOSITORY / "accelerate_configs" / "single_gpu.yaml"
    launcher = [str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file", str(configuration)]
    run = train("--smoke", "--mixed_precision", precision, launcher=launcher)
    assert run.code == 0, run.stderr
    environment = json.loads((run.run_dir / "environment.json").read_text())
    assert (environment["device"], environment["mixed_precision"]) == ("cuda:0", precision)
    assert 0.85 < run.metrics["accuracy"] < 1.0
    assert run.logged("train")[-1]["peak_memory_mib"] > 0
