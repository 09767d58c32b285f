"""Every configuration on the GPUs that are here: one process each, two at most."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import pipeline

from tests.support.gpu_runs import assert_went_on
from tests.support.jobs import ONE_PROCESS, running
from tests.support.running import REPOSITORY, Finished

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

Train = Callable[..., Finished]
CONFIGURATIONS = sorted((REPOSITORY / "accelerate_configs").glob("*.yaml"))
NOT_HERE = ("single_cpu", "multi_cpu", "multi_node", "deepspeed_file")  # the last names its JSON by a relative path
ON_GPUS = [path.stem for path in CONFIGURATIONS if path.stem not in NOT_HERE]


def launcher(name: str) -> list[str]:
    configuration = REPOSITORY / "accelerate_configs" / f"{name}.yaml"
    processes = 1 if name == "single_gpu" else min(2, torch.cuda.device_count())
    return [
        *ONE_PROCESS,
        "--config_file",
        str(configuration),
        "--num_processes",
        str(processes),
        "--main_process_port",
        "0",
    ]


@pytest.mark.parametrize("name", ON_GPUS)
def test_every_configuration_trains_and_exports_and_one_gpu_goes_on_from_it(
    name: str, train: Train, tmp_path: Path
) -> None:
    if name.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    flags = ["--smoke", "--max_train_steps", 60, "--logging_steps", 1, "--global_batch_size", 32, "--log_sample_ids"]
    flags += ["--dropout", 0]  # whose masks are other ones under another strategy
    whole = train(*flags, run_dir=tmp_path / "whole", launcher=launcher(name))
    assert whole.code == 0, whole.stderr
    assert json.loads((whole.run_dir / "environment.json").read_text())["device"].startswith("cuda")
    label = pipeline("text-classification", str(whole.run_dir / "model"))("a gripping , funny film")[0]["label"]
    assert label in ("NEGATIVE", "POSITIVE")

    with running(flags, tmp_path / "stopped", launcher(name)) as job:
        job.wait_for_step(20)
        job.process.terminate()
        assert job.wait().code == 75, job.said
        (stopped_at,) = job.checkpoints
    resumed = train(
        *flags, "--resume_from_checkpoint", "auto", run_dir=tmp_path / "stopped", launcher=launcher("single_gpu")
    )
    assert resumed.code == 0, resumed.stderr
    # DeepSpeed and FSDP keep weights in bf16 where one GPU has them in float32
    assert_went_on(resumed, whole, stopped_at, loss_tolerance=0.05)


def test_fsdp_has_the_losses_of_one_process_in_float32(train: Train, tmp_path: Path) -> None:
    flags = ["--smoke", "--max_train_steps", 30, "--logging_steps", 1, "--dropout", 0, "--mixed_precision", "no"]
    one = train(*flags, "--global_batch_size", 32, run_dir=tmp_path / "one", launcher=launcher("single_gpu"))
    many = train(*flags, "--global_batch_size", 32, run_dir=tmp_path / "many", launcher=launcher("fsdp2"))
    assert many.code == 0, many.stderr
    for mine, theirs in zip(one.logged("train"), many.logged("train"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["learning_rate"] == theirs["learning_rate"]
