"""Whether steps are captured as CUDA graphs, and how."""

import logging
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from sst2.config.settings import Settings
from sst2.data.collation import collate
from sst2.data.packing import Pack
from sst2.distributed.strategies.flat import FlatStrategy
from sst2.distributed.strategies.strategy import Strategy
from sst2.training.steps.buckets import Buckets
from sst2.training.steps.cuda_graphs import CudaGraphRunner
from sst2.training.steps.inputs import StepInputs
from sst2.training.steps.runner import StepRunner
from sst2.training.steps.split_graphs import SplitGraphRunner

if TYPE_CHECKING:
    from sst2.training.trainer import Trainer

logger = logging.getLogger(__name__)


def choose_runner(trainer: "Trainer") -> StepRunner:
    """How steps are run, by `--cuda_graphs`; `yes` warns where they cannot be captured.

    They can for packed batches on a GPU in bf16. The sizes of padded batches, and of attention in grids, follow from
    their sentences; fp16's loss scale is looked at by the host, and gradient checkpointing saves and restores random
    states there. `auto` takes them on one process, for one micro-batch a step.
    """
    settings, strategy, train = trainer.settings, trainer.strategy, trainer.splits["train"]
    batch_size, accumulation = settings.global_batch_size, settings.gradient_accumulation_steps
    assert batch_size is not None
    assert accumulation is not None
    to_batch = partial(collate, train, pad_token_id=trainer.tokenizer.pad_token_id, batching=settings.batching)
    own = strategy, to_batch, trainer.step_metrics.add
    if settings.cuda_graphs == "no":
        return StepRunner(*own)
    if settings.cuda_graphs == "auto":
        fits = strategy.fits_a_graph and accumulation == 1
        if not fits or obstacle(settings) or obstacle_of_device(strategy, settings):
            return StepRunner(*own)
        return CudaGraphRunner(*own, Buckets.of(batch_size, train.lengths()), trainer.start_phase)
    reason = obstacle(settings)
    if not reason and not (isinstance(strategy, FlatStrategy) and strategy.fits_a_graph):
        reason = "the strategy has its own order of a step, or the model is compiled"
    reason = reason or obstacle_of_device(strategy, settings)
    if reason:
        logger.warning("--cuda_graphs yes: steps are run operation by operation, since %s", reason)
        return StepRunner(*own)
    assert isinstance(strategy, FlatStrategy)
    rank, world_size = trainer.accelerator.process_index, trainer.accelerator.num_processes
    lengths, share = train.lengths(), -(-batch_size // world_size)
    buckets = Buckets.of(min(share, settings.per_device_train_batch_size), lengths)
    sizes = buckets.planned(trainer.plan, lengths, rank, world_size)
    inputs = StepInputs(train, buckets, sizes[0], len(strategy.optimizer.param_groups), strategy.device)
    return SplitGraphRunner(
        strategy,
        to_batch,
        trainer.step_metrics.add,
        inputs=inputs,
        sizes=sizes,
        accumulates=accumulation > 1,
        start_phase=trainer.start_phase,
    )


def obstacle(settings: Settings) -> str:
    """Why steps cannot be captured with these settings, whatever the device; empty if they can."""
    if settings.batching != "packed":
        return "padded batches have too many shapes"
    if settings.gradient_checkpointing:
        return "gradient checkpointing restores random states on the host"
    if settings.mixed_precision == "fp16":
        return "the loss scale of fp16 is looked at by the host"
    return ""


def obstacle_of_device(strategy: Strategy, settings: Settings) -> str:
    """Why this device cannot capture them; empty if it can, and on a CPU, where functions stand in for graphs."""
    device = strategy.device.type
    if device not in ("cuda", "cpu"):
        return f"{device} devices have no CUDA graphs"
    if device == "cuda" and (settings.mixed_precision != "bf16" or _runs_in_grids(strategy)):
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
