"""The record of what ran where, environment.json: versions, devices, git commit, launcher, SLURM job."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from sst2.config.launcher import launched_by
from sst2.distributed.devices import processor

PACKAGES = (
    "accelerate datasets deepspeed evaluate numpy safetensors scikit-learn tensorboard tokenizers torch transformers"
)
# Named one by one: an environment may hold secrets under any name.
RECORDED_VARIABLES = (
    "SLURM_JOB_ID SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID SLURM_JOB_NAME SLURM_JOB_NODELIST SLURM_JOB_PARTITION "
    "SLURM_NNODES SLURM_NTASKS SLURM_RESTART_COUNT CUDA_VISIBLE_DEVICES OMP_NUM_THREADS HF_HUB_OFFLINE "
    "NVIDIA_TF32_OVERRIDE TORCH_ALLOW_TF32_CUBLAS_OVERRIDE ONEDNN_DEFAULT_FPMATH_MODE DNNL_DEFAULT_FPMATH_MODE"
)


def describe_environment(
    world_size: int, device: torch.device, precision: str, strategy: dict[str, Any]
) -> dict[str, Any]:
    """Versions, devices, git commit, launcher and SLURM job. Holds no environment variable but the named ones.

    `precision` is that of forward passes, `no`, `bf16` or `fp16`; `strategy`, what it says of itself.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES.split()},
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "world_size": world_size,
        **strategy,
        "mixed_precision": precision,
        "launcher": launched_by(),
        "git_commit": _git_commit(),
        "variables": {name: os.environ[name] for name in RECORDED_VARIABLES.split() if name in os.environ},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of the project's checkout, with `-dirty` after it when files differ from it."""
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
