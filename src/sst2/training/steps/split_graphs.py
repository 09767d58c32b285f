"""Optimizer steps in three parts, on any number of GPUs: captured passes, one collective, a captured step of AdamW.

Ranks have different numbers of tokens, and NCCL wants a collective in graphs to be the same one on all ranks: it stays
outside. All graphs are captured before the first step, so that a capture that fails costs no step.

On a CPU, functions take the place of graphs, and all else is the same.
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sst2.data.collation import Batch
from sst2.distributed.strategies.flat import FlatStrategy
from sst2.training.steps.inputs import StepInputs
from sst2.training.steps.runner import (
    Count,
    ForwardBackward,
    OptimizerStep,
    RatesInMemory,
    Step,
    StepRunner,
    has_room,
)
from sst2.utils.errors import UserError

logger = logging.getLogger(__name__)


class SplitGraphRunner(StepRunner):
    """Replays what is captured: passes by their number of tokens, and the optimizer's step with the metrics of it.

    The host writes a micro-batch and all numbers of a step to one buffer, sends it, and asks for graphs.

    Args:
        strategy: of any number of ranks.
        collate: as of `StepRunner`, for shapes that are not captured.
        count: as of `StepRunner`.
        inputs: what graphs read.
        sizes: numbers of tokens to capture, the largest first.
        accumulates: whether steps have several micro-batches.
        start_phase: called with the name of a phase of the step.
    """

    has_graphs = True

    def __init__(
        self,
        strategy: FlatStrategy,
        collate: Callable[[np.ndarray], Batch],
        count: Count,
        inputs: StepInputs,
        sizes: list[int],
        accumulates: bool,
        start_phase: Callable[[str], None],
    ) -> None:
        super().__init__(strategy, collate, count)
        self._flat, self._inputs, self._sizes = strategy, inputs, sizes
        self._accumulates, self._start_phase = accumulates, start_phase
        self._rates = RatesInMemory(strategy.optimizer, inputs.rates)
        self._loss_sum, self._grad_norm = (torch.zeros((), device=strategy.device) for _ in range(2))
        self._passes: dict[int, Callable[[], None]] = {}  # by number of tokens
        self._update: Callable[[], None] | None = None
        self._has_tried = False

    @property
    def captured(self) -> int:
        """Number of shapes that are captured."""
        return len(self._passes)

    def run(
        self, step: Step, forward_backward: ForwardBackward, optimizer_step: OptimizerStep
    ) -> tuple[torch.Tensor, int]:
        """Run a step: see `StepRunner.run`. The gradient norm is overwritten by the next step.

        Raises:
            UserError: in the first step, the device refuses to capture it.
        """
        self._inputs.write_numbers([step.divisor, step.loss_weight, *self._rates.of_schedule])
        with self._rates.used():
            if not self._has_tried:
                self._has_tried = True
                self._capture(forward_backward, optimizer_step)
            if self._update is None:
                self._inputs.send()
                return super().run(step, forward_backward, optimizer_step)
            self._flat.empty_gradients(zeros=self._accumulates)
            if self._accumulates:
                self._loss_sum.zero_()
            tokens = 0
            for indices, weight in step.micro_batches:
                tokens += self._run_passes(indices, weight, forward_backward)
            self._strategy.reduce_gradients()
            self._start_phase("optimizer")
            self._update()
            return self._grad_norm, tokens

    def padded(self, sentences: int, tokens: int) -> int:
        """See `StepRunner.padded`."""
        return self._inputs.padded(sentences, tokens)

    def _run_passes(self, indices: np.ndarray, weight: float, forward_backward: ForwardBackward) -> int:
        """The passes of a micro-batch, which add to gradients and losses. Returns its tokens, padding included."""
        size = self._inputs.tokens(indices)
        passes = self._passes.get(size)
        if passes is None:
            self._inputs.send()
            batch = self._collate(indices)
            self._add_loss(forward_backward([(batch, weight)], self._inputs.divisor))
            return batch.size
        self._inputs.write(indices, size, ignore=weight == 0)
        self._inputs.send()
        self._start_phase("graph")
        passes()
        return size

    def _add_loss(self, loss: torch.Tensor) -> None:
        if self._accumulates:
            self._loss_sum += loss
        else:
            self._loss_sum.copy_(loss)

    def _capture(self, forward_backward: ForwardBackward, optimizer_step: OptimizerStep) -> None:
        """Capture everything. Neither weights nor metrics nor random states change.

        Raises:
            UserError: the device refuses. Where it lacks the room, steps are run eagerly.
        """
        device, pool = self._strategy.device, None

        def passes_of(size: int) -> Callable[[], None]:
            return lambda: self._add_loss(forward_backward([(self._inputs.batch(size), 1.0)], self._inputs.divisor))

        def update() -> None:
            self._grad_norm.copy_(optimizer_step())
            self._count(self._loss_sum, self._grad_norm, self._inputs.loss_weight)

        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                for size in self._sizes:
                    self._inputs.write_filler(size)
                    self._inputs.send()
                    passes = passes_of(size)
                    passes()  # libraries prepare what they cannot prepare in a capture
                    self._flat.empty_gradients(zeros=self._accumulates)
                    if device.type == "cuda":
                        if not has_room(device):
                            logger.warning("the GPU has no room for more CUDA graphs than %d", self.captured)
                            break
                        passes, pool = captured(passes, pool)
                    self._passes[size] = passes
            self._flat.prepare_optimizer(optimizer_step)
            with self._rates.capturable():
                self._update, _ = captured(update, pool) if device.type == "cuda" else (update, None)
        except torch.OutOfMemoryError:
            self._passes.clear()
            self._flat.reset_gradients()
            logger.warning("the GPU has no room for CUDA graphs: steps are run operation by operation")
        except RuntimeError as error:  # after which CUDA's state is not to be trusted; no step is lost
            reason = str(error).partition("\n")[0]
            way_out = "give --cuda_graphs no"
            raise UserError(f"this GPU cannot capture steps as CUDA graphs ({reason}): {way_out}") from error
        if self._update:
            largest = max(self._passes, default=0)
            logger.info("steps are captured in %d shapes of up to %d tokens", self.captured, largest)


def captured(function: Callable[[], None], pool: Any) -> tuple[Callable[[], None], Any]:
    """A function as a CUDA graph, to be called in its place, and the pool of its memory, for the next one to share.

    Raises:
        RuntimeError: it does what cannot be captured, or there is no room.
    """
    graph = torch.cuda.CUDAGraph()
    # What other threads ask of the GPU meanwhile is no business of the capture.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        function()
    return graph.replay, graph.pool()
