"""Devices: whether a run computes on CPU or GPU, GPUs that are overlooked, the processor."""

import os
import platform
from pathlib import Path

import torch

from sst2.config.launcher import is_set, launched_by, launcher_words

# By which libraries compute float32 products with fewer digits than float32 has, and the values that do not say so.
_LOOSE_FLOAT32 = {
    "NVIDIA_TF32_OVERRIDE": "0",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "0",
    "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT",
    "DNNL_DEFAULT_FPMATH_MODE": "STRICT",
}


def runs_on_cpu() -> bool:
    """Whether the job runs on the CPU, by the launcher's word or for want of anything else.

    accelerate must be told: processes on a host without a GPU would otherwise each train alone. Under DeepSpeed it must
    not be told, since it then leaves DeepSpeed out.
    """
    if is_set("ACCELERATE_USE_CPU"):
        return True
    return not torch.accelerator.is_available() and not is_set("ACCELERATE_USE_DEEPSPEED")


def computes_on_cpu() -> bool:
    """Whether it does, under DeepSpeed as well."""
    return is_set("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def overlooks_gpus(devices: Path = Path("/dev")) -> bool:
    """Whether there are NVIDIA GPUs that torch does not see and that nobody has hidden."""
    is_meant = is_set("ACCELERATE_USE_CPU") or "CUDA_VISIBLE_DEVICES" in os.environ
    return not (is_meant or torch.cuda.is_available()) and any(devices.glob("nvidia[0-9]*"))


def gpu_flags_of_launcher() -> str:
    """What the launcher was given for GPUs though there is none, unless somebody has hidden them: to be warned of.

    Returns:
        The configuration or the flag; empty where nothing asked for a GPU, or there is one.
    """
    # slurm/train.sh gives several nodes one configuration, whatever they have, unless SST2_CONFIG names another
    by_batch_script = "SST2_BATCH_JOB" in os.environ and "SST2_CONFIG" not in os.environ
    is_meant = is_set("ACCELERATE_USE_CPU") or "CUDA_VISIBLE_DEVICES" in os.environ or by_batch_script
    if is_meant or torch.accelerator.is_available() or launched_by() == "python":
        return ""
    words = launcher_words()
    for place, word in enumerate(words):
        flag, _, value = word.partition("=")
        if flag in ("--config_file", "--config-file"):
            return value or "".join(words[place + 1 : place + 2])
        if flag in ("--multi_gpu", "--multi-gpu", "--gpu_ids", "--gpu-ids"):
            return flag
    return ""


def loosens_float32() -> str:
    """The variable that has float32 products computed with fewer digits, with its value; empty if there is none."""
    for name, strict in _LOOSE_FLOAT32.items():
        if os.environ.get(name, strict).upper() not in (strict, ""):
            return f"{name}={os.environ[name]}"
    return ""


def processor() -> str:
    """The name of the machine's processor."""
    return cpu_info("model name") or platform.processor()


def cpu_info(key: str) -> str:
    """What Linux says of the first processor, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
