"""The launcher's word to this process: rank, strategy, and the world size that it promises, which is checked."""

import os
from dataclasses import dataclass

from sst2.config.launcher_variables import START_SEVERAL, is_set, process_rank, read_number
from sst2.utils.errors import UserError


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


def check_world_size(promised: int, world_size: int) -> None:
    """Raises UserError: fewer processes work together than WORLD_SIZE promises."""
    if promised != world_size:
        raise UserError(
            f"the launcher promised {promised} processes, but {world_size} work{'s' * (world_size == 1)} together: "
            f"{START_SEVERAL}"
        )
