"""Optimizer steps in three parts, on any number of GPUs: captured passes, one collective, a captured step of AdamW.

Ranks have different numbers of tokens, and NCCL wants a collective in graphs to be the same one on all ranks: it stays
outside. All graphs are captured before the first step; a capture that fails leaves steps without them.

On a CPU, functions take the place of graphs, and all else is the same.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch

from sst2.data.collation import Batch, MicroBatches
from sst2.distributed.strategies.flat import FlatStrategy
from sst2.training.steps.buckets import Buckets
from sst2.training.steps.runner import ForwardBackward, OptimizerStep, RatesInMemory, StepRunner, has_room

logger = logging.getLogger(__name__)

Passes = Callable[[Batch], torch.Tensor]  # of a padded micro-batch: leave gradients, and return the sum of losses, ()


class SplitGraphRunner(StepRunner):
    """Replays what is captured: passes by their number of tokens, and the optimizer's step.

    Args:
        buckets: of this rank.
        sizes: numbers of tokens to capture, the largest first.
        accumulates: whether steps have several micro-batches.
        start_phase: called with the name of a phase of the step.
    """

    def __init__(
        self,
        strategy: FlatStrategy,
        buckets: Buckets,
        sizes: list[int],
        accumulates: bool,
        start_phase: Callable[[str], None],
    ) -> None:
        super().__init__(strategy)
        self._flat, self._buckets, self._sizes, self._accumulates = strategy, buckets, sizes, accumulates
        self._start_phase = start_phase
        self._rates = RatesInMemory(strategy.optimizer, strategy.device)
        self._passes: dict[int, Passes] = {}  # by number of tokens
        self._update: OptimizerStep | None = None
        self._has_tried = False

    @property
    def captured(self) -> int:
        """Number of shapes that are captured."""
        return len(self._passes)

    def run(
        self, micro_batches: MicroBatches, forward_backward: ForwardBackward, optimizer_step: OptimizerStep
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Run a step: see `StepRunner.run`."""
        with self._rates.used():
            if not self._has_tried:
                self._has_tried = True
                self._capture(forward_backward, optimizer_step)
            if self._update is None:
                return super().run(micro_batches, forward_backward, optimizer_step)
            self._flat.empty_gradients(zeros=self._accumulates)
            losses, tokens = [], 0
            for batch, loss_weight in micro_batches:
                padded = self._buckets.pad(batch, ignore=loss_weight == 0)
                tokens += padded.size
                passes = self._passes.get(padded.size)
                self._start_phase("graph")
                losses.append(passes(padded) if passes else forward_backward([(padded, 1.0)]))
            self._strategy.reduce_gradients()
            self._start_phase("optimizer")
            return torch.stack(losses).sum(), self._update(), tokens

    def _capture(self, forward_backward: ForwardBackward, optimizer_step: OptimizerStep) -> None:
        """Capture everything. Neither weights nor random states change."""
        device, pool = self._strategy.device, None
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                for size in self._sizes:
                    filler = self._buckets.filler(size).to(device)
                    forward_backward([(filler, 1.0)])  # libraries prepare what they cannot prepare in a capture
                    self._flat.empty_gradients(zeros=self._accumulates)
                    if device.type != "cuda":
                        self._passes[size] = lambda batch: forward_backward([(batch, 1.0)])
                        continue
                    if not has_room(device):
                        logger.warning("the GPU has no room for more CUDA graphs than %d", self.captured)
                        break
                    passes = CapturedPasses(forward_backward, filler, pool)
                    self._passes[size], pool = passes, passes.pool
            self._flat.prepare_optimizer(optimizer_step)
            with self._rates.capturable():
                self._update = CapturedUpdate(optimizer_step, pool) if device.type == "cuda" else optimizer_step
        except RuntimeError as error:
            self._passes.clear()
            self._flat.empty_gradients(zeros=False)
            reason = str(error).partition("\n")[0]
            logger.warning("steps cannot be captured as CUDA graphs (%s): they are run operation by operation", reason)
        if self._update:
            largest = max(self._passes, default=0)
            logger.info("steps are captured in %d shapes of up to %d tokens", self.captured, largest)


class CapturedPasses:
    """The forward and backward pass of one shape, and the memory in which they find their batch."""

    def __init__(self, forward_backward: ForwardBackward, batch: Batch, pool: Any) -> None:
        self._batch, self._graph = batch, torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._loss = forward_backward([(batch, 1.0)])
        self.pool = self._graph.pool()

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Copy a batch of the same shape to where the graph finds it, and replay. Returns the sum of losses, ()."""
        for own, new in zip(self._batch.tensors(), batch.tensors(), strict=True):
            own.copy_(new.pin_memory(), non_blocking=True)
        self._graph.replay()
        return self._loss.clone()  # the next graph may use its memory


class CapturedUpdate:
    """Clipping and AdamW."""

    def __init__(self, optimizer_step: OptimizerStep, pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._norm = optimizer_step()

    def __call__(self) -> torch.Tensor:
        """Replay. Returns the gradient norm, ()."""
        self._graph.replay()
        return self._norm.clone()
