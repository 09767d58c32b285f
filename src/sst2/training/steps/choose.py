"""Whether steps are captured as CUDA graphs, and how."""

import logging
from collections.abc import Callable

import numpy as np
import torch

from sst2.config.settings import Settings
from sst2.data.batch_plan import BatchPlan
from sst2.data.packing import Pack
from sst2.distributed.strategies.flat import FlatStrategy
from sst2.distributed.strategies.strategy import Strategy
from sst2.training.steps.buckets import Buckets
from sst2.training.steps.cuda_graphs import CudaGraphRunner
from sst2.training.steps.runner import StepRunner
from sst2.training.steps.split_graphs import SplitGraphRunner

logger = logging.getLogger(__name__)


def choose_runner(
    strategy: Strategy,
    settings: Settings,
    plan: BatchPlan,
    lengths: np.ndarray,
    start_phase: Callable[[str], None],
    rank: int = 0,
    world_size: int = 1,
) -> StepRunner:
    """How steps are run, by `--cuda_graphs`; `yes` warns where they cannot be captured.

    They can for packed batches on a GPU in bf16. The sizes of padded batches, and of attention in grids, follow from
    their sentences; fp16's loss scale is looked at by the host, and gradient checkpointing saves and restores random
    states there. `auto` takes them on one process, for one micro-batch a step.

    Args:
        strategy: with the state of the run loaded.
        settings: of the run.
        plan: of its batches.
        lengths: (sentences,) tokens of each training sentence.
        start_phase: called with the name of a phase of a step.
        rank: of this process.
        world_size: number of processes.
    """
    assert settings.global_batch_size is not None
    assert settings.gradient_accumulation_steps is not None
    if settings.cuda_graphs == "no":
        return StepRunner(strategy)
    if settings.cuda_graphs == "yes":
        if reason := _obstacle(strategy, settings):
            logger.warning("--cuda_graphs yes: steps are run operation by operation, since %s", reason)
            return StepRunner(strategy)
        assert isinstance(strategy, FlatStrategy)
        share = -(-settings.global_batch_size // world_size)
        buckets = Buckets.of(min(share, settings.per_device_train_batch_size), lengths)
        sizes = buckets.planned(plan, lengths, rank, world_size)
        return SplitGraphRunner(strategy, buckets, sizes, settings.gradient_accumulation_steps > 1, start_phase)
    fits = strategy.fits_a_graph and settings.gradient_accumulation_steps == 1
    if not fits or _obstacle(strategy, settings):
        return StepRunner(strategy)
    return CudaGraphRunner(strategy, Buckets.of(settings.global_batch_size, lengths), start_phase)


def _obstacle(strategy: Strategy, settings: Settings) -> str:
    """Why steps cannot be captured; empty if they can, and on a CPU if they could be but for it."""
    if settings.cuda_graphs == "yes" and not isinstance(strategy, FlatStrategy):
        return "the strategy has its own order of a step"
    if settings.batching != "packed":
        return "padded batches have too many shapes"
    if settings.gradient_checkpointing:
        return "gradient checkpointing restores random states on the host"
    if settings.mixed_precision == "fp16":
        return "the loss scale of fp16 is looked at by the host"
    if strategy.device.type == "cuda" and (settings.mixed_precision != "bf16" or _runs_in_grids(strategy)):
        return "FlashAttention, whose shapes are few, needs bf16 and heads of a width that it takes"
    return ""


@torch.no_grad()
def _runs_in_grids(strategy: Strategy) -> bool:
    """Whether attention asks for grids, whose sizes follow from the sentences; found out by a batch of two."""
    pack = Pack.of(np.array([2, 3])).to(strategy.device)
    ids = torch.zeros(pack.num_tokens, dtype=torch.int64, device=strategy.device)
    strategy.model.eval()
    strategy.model(input_ids=ids, position_ids=ids, pack=pack)
    return pack.has_grids
