"""What ran where: the record kept with every run, what the launcher has said, and what the machine can do."""

import importlib.metadata
import os
import platform
import re
import resource
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser

from sst2.cpu import BF16_MIN_GAIN, bf16_gain
from sst2.errors import UserError
from sst2.launcher_variables import is_set, launched_by, process_rank, read_number, threads_are_chosen
from sst2.settings import Precision

PACKAGES = (
    "accelerate datasets deepspeed evaluate numpy safetensors scikit-learn tensorboard tokenizers torch transformers"
)
# Named one by one: an environment may hold secrets under any name.
RECORDED_VARIABLES = (
    "SLURM_JOB_ID SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID SLURM_JOB_NAME SLURM_JOB_NODELIST SLURM_JOB_PARTITION "
    "SLURM_NNODES SLURM_NTASKS SLURM_RESTART_COUNT CUDA_VISIBLE_DEVICES OMP_NUM_THREADS HF_HUB_OFFLINE "
    "NVIDIA_TF32_OVERRIDE TORCH_ALLOW_TF32_CUBLAS_OVERRIDE ONEDNN_DEFAULT_FPMATH_MODE DNNL_DEFAULT_FPMATH_MODE"
)
# By which libraries compute float32 products with fewer digits than float32 has, and the values that do not say so.
_LOOSE_FLOAT32 = {
    "NVIDIA_TF32_OVERRIDE": "0",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "0",
    "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT",
    "DNNL_DEFAULT_FPMATH_MODE": "STRICT",
}

SMALL_MATRIX = 100_000  # weights of a layer, up to which one thread is as fast as two: benchmarks/threads.py


@dataclass(frozen=True)
class Launcher:
    """What the launcher has said to this process.

    Attributes:
        name: in words: `python`, `torchrun`, `accelerate launch`, `accelerate launch (torchrun)`.
        rank, world_size: number of this process among all, and of all.
        local_world_size: processes on this node.
        asked_for: processes that the command line of `accelerate launch`, or its YAML, asks for; 1 if that is unknown.
        master: host and port where the processes meet.
        keeps_store: whether the launcher itself keeps the store that they meet at; else rank 0 does.
        uses_deepspeed, uses_fsdp: strategy that it asks for; plain data parallel if neither.
        fsdp_version: of torch's two.
        attempt: how often it has started this job before.
        deepspeed_file: a JSON file with DeepSpeed's configuration; without one, the fields that follow hold it.
    """

    name: str
    rank: int
    world_size: int
    local_world_size: int
    asked_for: int
    master: tuple[str, int]
    keeps_store: bool
    uses_deepspeed: bool
    uses_fsdp: bool
    fsdp_version: int
    attempt: int
    deepspeed_file: str | None
    zero_stage: int
    offload_optimizer: str
    offload_param: str
    gradient_accumulation_steps: str
    gradient_clipping: str


def read_launcher() -> Launcher:
    """Raises UserError: a variable that should hold a number does not."""
    deepspeed = "ACCELERATE_DEEPSPEED_"
    return Launcher(
        name=launched_by(),
        rank=process_rank(),
        world_size=read_number("WORLD_SIZE", 1),
        local_world_size=read_number("LOCAL_WORLD_SIZE", 1),
        asked_for=_asked_for(),
        master=(os.environ.get("MASTER_ADDR", "127.0.0.1"), read_number("MASTER_PORT", 29500)),
        keeps_store=is_set("TORCHELASTIC_USE_AGENT_STORE"),
        uses_deepspeed=is_set("ACCELERATE_USE_DEEPSPEED"),
        uses_fsdp=is_set("ACCELERATE_USE_FSDP"),
        fsdp_version=read_number("FSDP_VERSION", 1),
        attempt=read_number("TORCHELASTIC_RESTART_COUNT", 0),
        deepspeed_file=os.environ.get(f"{deepspeed}CONFIG_FILE") or None,
        zero_stage=read_number(f"{deepspeed}ZERO_STAGE", 2),
        offload_optimizer=os.environ.get(f"{deepspeed}OFFLOAD_OPTIMIZER_DEVICE", "none"),
        offload_param=os.environ.get(f"{deepspeed}OFFLOAD_PARAM_DEVICE", "none"),
        gradient_accumulation_steps=os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto"),
        gradient_clipping=os.environ.get("ACCELERATE_GRADIENT_CLIPPING", "auto"),
    )


def describe_environment(
    world_size: int, device: torch.device, precision: str, strategy: dict[str, Any]
) -> dict[str, Any]:
    """Versions, devices, git commit, launcher and SLURM job. Holds no environment variable but the named ones.

    Args:
        strategy: what it says of itself.
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


def loosens_float32() -> str:
    """The variable that has float32 products computed with fewer digits, with its value; empty if there is none."""
    for name, strict in _LOOSE_FLOAT32.items():
        if os.environ.get(name, strict).upper() not in (strict, ""):
            return f"{name}={os.environ[name]}"
    return ""


def choose_precision(requested: Precision | None) -> tuple[Precision, str]:
    """The autocast precision and the reason for it, in words.

    Args:
        requested: `no`, `fp16`, `bf16`, `auto`, or None to follow the launcher (ACCELERATE_MIXED_PRECISION).

    Raises:
        UserError: a precision that the device cannot do.
    """
    on_cuda = torch.cuda.is_available() and not computes_on_cpu()
    if requested == "auto":
        if on_cuda:
            if torch.cuda.get_device_capability() >= (8, 0):
                return "bf16", "the GPU has bf16 matrix units"
            return "fp16", "the GPU has no bf16 matrix units"
        if not computes_on_cpu() or not _cpu_has_bf16():
            return "no", "the device has no fast 16-bit arithmetic"
        gain = bf16_gain()
        return "bf16" if gain >= BF16_MIN_GAIN else "no", f"the CPU is {gain:.1f} times as fast in bf16, measured"
    exported = os.environ.get("ACCELERATE_MIXED_PRECISION")
    precision = cast(Precision, requested or exported or "no")
    if precision not in ("no", "bf16", "fp16"):
        raise UserError(f"the launcher asks for {precision}: give --mixed_precision bf16, fp16, no or auto")
    if precision == "fp16" and not on_cuda:
        raise UserError("--mixed_precision fp16 needs a GPU: give bf16, no or auto")
    if precision == "bf16" and on_cuda and torch.cuda.get_device_capability() < (8, 0):
        name = torch.cuda.get_device_name()
        raise UserError(f"--mixed_precision bf16: {name} has no bf16 matrix units: give fp16, no or auto")
    if requested:
        return precision, "--mixed_precision says so"
    by_launcher = launched_by() != "python"
    unasked = "ACCELERATE_MIXED_PRECISION says so" if exported else "the default without a launcher"
    return precision, "the launcher says so" if by_launcher else unasked


def use_all_cores() -> None:
    """On a CPU, give each process its share of the node's cores, unless somebody has decided on a number of threads.

    Where launchers find nothing they mostly set OMP_NUM_THREADS to 1, which leaves cores idle.
    """
    if not computes_on_cpu() or launched_by() == "python" or threads_are_chosen():
        return
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # physical ones: a core's second thread has no matrix unit to give
    cores = min(psutil.cpu_count(logical=False) or allowed, allowed)
    torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def limit_threads(model: torch.nn.Module) -> None:
    """Compute a small model with one thread: its operations are over before a second one has woken up.

    What it computes then depends on the machine's number of cores no longer, to the last bit. A number of threads that
    somebody has set (OMP_NUM_THREADS) stays.
    """
    largest = max((layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear)), default=0)
    if largest <= SMALL_MATRIX and (os.environ.get("OMP_NUM_THREADS") == "1" or not threads_are_chosen()):
        torch.set_num_threads(1)


def wants_colour(descriptor: int) -> bool:
    """Whether what is written there may be coloured: to a terminal, unless NO_COLOR is set (no-color.org)."""
    return os.isatty(descriptor) and not os.environ.get("NO_COLOR")


def expand_path(text: str) -> Path:
    """A path with ~ and variables such as $TMPDIR looked up on this node.

    Raises:
        UserError: a variable is not set.
    """
    path = os.path.expandvars(os.path.expanduser(text))
    if missing := re.search(r"\$\{?(\w+)", path):
        raise UserError(f"{text}: {missing[1]} is not set on {socket.gethostname()}: set it, or name a folder")
    return Path(path)


def keep_matplotlib_in(folder: Path) -> None:
    """Where matplotlib is to write what it knows of fonts, if nobody has said so. To be called before its import.

    By default that is in the home folder, which a compute node may not be able to write.
    """
    if "matplotlib" not in sys.modules:
        os.environ.setdefault("MPLCONFIGDIR", str(folder))


def peak_memory_mib(device: torch.device) -> float:
    """Highest memory so far in MiB: allocated on the GPU, or resident of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The name of the machine's processor."""
    return _cpu_info("model name") or platform.processor()


def _cpu_has_bf16() -> bool:
    """Whether there are instructions for bf16 products. oneDNN emulates them elsewhere, which gains nothing."""
    features = _cpu_info("flags") + " " + _cpu_info("Features")  # as x86 and Arm call them
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(features.split())


def _cpu_info(key: str) -> str:
    """What Linux says of the first processor, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def _asked_for() -> int:
    """Number of processes on the command line of accelerate's launcher, where it has started this process alone.

    With `--cpu`, or MULTI_CPU in its YAML, it starts one without a word, whatever number it was given.
    """
    if launched_by() != "accelerate launch":
        return 1
    with suppress(psutil.Error, OSError, ValueError, TypeError, StopIteration, SystemExit):
        words = psutil.Process(os.getppid()).cmdline()
        start = next(number for number, word in enumerate(words) if word in ("launch", "sst2.launch"))
        arguments, _ = launch_command_parser().parse_known_args(words[start + 1 :])
        if arguments.num_processes is None and (arguments.config_file or os.path.isfile(default_config_file)):
            arguments.num_processes = load_config_from_file(arguments.config_file).num_processes
        return arguments.num_processes or 1
    return 1


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
