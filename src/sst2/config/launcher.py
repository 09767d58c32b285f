"""What the launcher tells each process in variables: its place, the strategy; without what somebody else has left.

Nothing heavy is imported here: a process that must not speak knows it before it has imported torch.
"""

import os
from contextlib import suppress
from dataclasses import dataclass

import psutil

from sst2.utils.errors import UserError

LAUNCH = "SST2_LAUNCH"  # a number of its own, by which sst2 launch tells processes that it restarts who began
_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # which accelerate reads
START_SEVERAL = (
    "start them with torchrun, or with accelerate launch --multi_gpu (on CPUs as well, as "
    "accelerate_configs/multi_cpu.yaml does)"
)


def job_id() -> str:
    """Of a job that may start many times: SLURM's, or that of `sst2 launch --max_restarts`; empty if none."""
    return os.environ.get("SST2_BATCH_JOB") or os.environ.get(LAUNCH, "")


def read_number(variable: str, default: int) -> int:
    """A variable that is empty counts as not set.

    Raises:
        UserError: it holds no number.
    """
    value = os.environ.get(variable) or default
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{variable} is {value}, which is no number: unset it, or start with a launcher") from None


def is_set(variable: str) -> bool:
    """Whether a variable that is a switch is on."""
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes")


def launched_by() -> str:
    """What has started this process: `accelerate launch`, `torchrun`, `accelerate launch (torchrun)`, or `python`.

    ACCELERATE_MIXED_PRECISION alone does not tell, since people export it.
    """
    if _has_place_of_torchrun():
        return "accelerate launch (torchrun)" if os.environ.get("ACCELERATE_MIXED_PRECISION") else "torchrun"
    # set by accelerate's launcher always, and by nobody else
    return "accelerate launch" if os.environ.get("ACCELERATE_DYNAMO_MODE") else "python"


def _has_place_of_torchrun() -> bool:
    return bool(os.environ.get("TORCHELASTIC_RUN_ID") and os.environ.get("WORLD_SIZE"))


def process_rank() -> int:
    """Number of this process among all of the job; 0 where it is alone, whatever RANK is left of.

    Raises:
        UserError: a variable holds no number, or a rank that cannot be.
    """
    size = read_number("WORLD_SIZE", 1)
    rank = read_number("RANK", 0) if size > 1 else 0
    if not 0 <= rank < max(size, 1):
        raise UserError(f"RANK is {rank}, but there are {size} processes (WORLD_SIZE): unset both, or use a launcher")
    return rank


def is_reporting_process() -> bool:
    """Whether this process speaks for its node (the launchers number a node's processes in LOCAL_RANK)."""
    with suppress(UserError):  # which this very process will say, then
        return read_number("WORLD_SIZE", 1) <= 1 or read_number("LOCAL_RANK", 0) <= 0
    return True


def forget_leftovers() -> None:
    """Unset what would have accelerate look for other processes where no launcher has started any.

    Raises:
        UserError: MPI has started several processes, none of which would know of the others, or `accelerate launch` was
            asked for several and has started one, as it does with `--cpu` and MULTI_CPU.
    """
    for name in _PLACE:
        if os.environ.get(name) == "":
            del os.environ[name]
    needs_group = is_set("ACCELERATE_USE_DEEPSPEED") or is_set("ACCELERATE_USE_FSDP")
    if read_number("WORLD_SIZE", 1) > 1 or _has_place_of_torchrun() or needs_group:
        return
    for name in _PLACE:
        os.environ.pop(name, None)
    for name in _MPI_SIZES:
        if read_number(name, 1) > 1:
            raise UserError(
                f"{name} is {os.environ[name]}, and MPI does not tell its processes of each other: start them with "
                f"accelerate launch or torchrun, or unset {name} to run one"
            )
    # set for several processes alone
    if launched_by() == "accelerate launch" and any(map(_is_set_by_launcher, ("MASTER_ADDR", "MASTER_PORT"))):
        raise UserError(f"the launcher promised several processes, but 1 works together: {START_SEVERAL}")


def _is_set_by_launcher(variable: str) -> bool:
    """Whether a variable is the launcher's word, and not in the environment that it was started with itself."""
    with suppress(psutil.Error, OSError):
        exported = psutil.Process(os.getppid()).environ().get(variable)
        return bool(os.environ.get(variable) != exported)
    return False


def threads_are_chosen() -> bool:
    """Whether OMP_NUM_THREADS is somebody's decision, and not what a launcher sets where it finds nothing.

    That is 1, or on a CPU under `accelerate launch` the number of cores. The launcher's own environment tells, as it
    was started, and its command line.
    """
    if launched_by() == "python":
        return "OMP_NUM_THREADS" in os.environ
    with suppress(psutil.Error, OSError):
        parent = psutil.Process(os.getppid())
        flags = [word.split("=")[0].replace("-", "_") for word in launcher_words()]
        return "OMP_NUM_THREADS" in parent.environ() or "__num_cpu_threads_per_process" in flags
    return False


def launcher_words() -> list[str]:
    """The launcher's own command line, without the script and what follows it; empty where it cannot be read."""
    with suppress(psutil.Error, OSError):
        words: list[str] = psutil.Process(os.getppid()).cmdline()
        scripts = (place for place, word in enumerate(words) if word.endswith("train_sst2.py"))
        return words[: next(scripts, None)]
    return []


@dataclass(frozen=True)
class Launcher:
    """The launcher's word to this process: its rank, the promised world size, the strategy.

    Attributes:
        rank, world_size: number of this process among all, and of all.
        local_world_size: processes on this node.
        master: host and port where the processes meet.
        keeps_store: whether the launcher itself keeps the store that they meet at; else rank 0 does.
        uses_deepspeed, uses_fsdp: strategy that it asks for; plain data parallel if neither.
        fsdp_version: of torch's two.
        attempt: how often it has started this job before.
        deepspeed_file: a JSON file with DeepSpeed's configuration; without one, the fields that follow hold it.
    """

    rank: int
    world_size: int
    local_world_size: int
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
        rank=process_rank(),
        world_size=read_number("WORLD_SIZE", 1),
        local_world_size=read_number("LOCAL_WORLD_SIZE", 1),
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
