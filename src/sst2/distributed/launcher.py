"""The launcher's word to this process: rank, strategy, and the world size that it promises, which is checked."""

import os
from contextlib import suppress
from dataclasses import dataclass

import psutil
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser

from sst2.config.launcher_variables import is_set, launched_by, process_rank, read_number
from sst2.utils.errors import UserError


@dataclass(frozen=True)
class Launcher:
    """The launcher's word to this process: its rank, the promised world size, the strategy.

    Attributes:
        name: in words: `python`, `torchrun`, `accelerate launch`, `accelerate launch (torchrun)`.
        rank, world_size: number of this process among all, and of all.
        local_world_size: processes on this node.
        requested_processes: number that the command line of `accelerate launch`, or its YAML, asks for; 1 if unknown.
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
    requested_processes: int
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
        requested_processes=_requested_processes(),
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


def check_world_size(launcher: Launcher, world_size: int) -> None:
    """Stop when fewer processes work together than were promised.

    Raises:
        UserError: WORLD_SIZE, or the command line of `accelerate launch`, says another number.
    """
    promised = max(launcher.world_size, launcher.requested_processes)
    if promised != world_size:
        raise UserError(
            f"the launcher promised {promised} processes, but {world_size} work{'s' * (world_size == 1)} together: "
            "start them with torchrun, or with accelerate launch --multi_gpu (on CPUs as well, as "
            "accelerate_configs/multi_cpu.yaml does)"
        )


def _requested_processes() -> int:
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
