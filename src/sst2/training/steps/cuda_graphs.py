"""Optimizer steps as CUDA graphs: captured once for each shape, then replayed whole.

A step of DistilBERT on some hundred tokens is over a thousand small operations. Asking for them one by one takes a host
several times as long as a GPU needs to do them; a graph is asked for at once.
"""

from collections.abc import Callable
from typing import Any

import torch

from sst2.data.collation import Batch, MicroBatches
from sst2.distributed.strategies.strategy import Strategy
from sst2.training.steps.buckets import Buckets
from sst2.training.steps.runner import (
    ForwardBackward,
    OptimizerStep,
    RatesInMemory,
    StepResult,
    StepRunner,
    has_room,
)
from sst2.utils.errors import UserError


class CudaGraphRunner(StepRunner):
    """Replays steps of full batches, and runs others eagerly. A shape that comes again is captured.

    The first time, the step is run as it would be without this class; libraries then prepare what they cannot prepare
    in a capture. Nothing is captured for which the GPU has no room: graphs keep their memory, all in one pool, and
    steps without one need theirs beside it.

    Args:
        strategy: of one process; the learning rates of its optimizer may change from step to step, nothing else.
        buckets: of its steps.
        start_phase: called with `graph` when a step is replayed or captured.
    """

    def __init__(self, strategy: Strategy, buckets: Buckets, start_phase: Callable[[str], None]) -> None:
        super().__init__(strategy)
        self._buckets, self._start_phase, self._device = buckets, start_phase, strategy.device
        self._rates = RatesInMemory(strategy.optimizer, strategy.device)
        self._graphs: dict[int, Graph | None] = {}  # by number of tokens; None where there is none yet
        self._pool: Any = None

    @property
    def captured(self) -> int:
        """Number of shapes that are captured."""
        return sum(graph is not None for graph in self._graphs.values())

    def run(
        self, micro_batches: MicroBatches, forward_backward: ForwardBackward, optimizer_step: OptimizerStep
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Run a step: see `StepRunner.run`.

        Raises:
            UserError: the device refuses to capture it.
        """
        with self._rates.used():
            ((batch, weight),) = micro_batches
            if len(batch.labels) != self._buckets.sentences:  # an epoch's short last step
                return super().run(micro_batches, forward_backward, optimizer_step)
            batch = self._buckets.pad(batch)
            self._start_phase("graph")
            if batch.size not in self._graphs or not (self._graphs[batch.size] or has_room(self._device)):
                self._graphs.setdefault(batch.size, None)
                return super().run([(batch, weight)], forward_backward, optimizer_step)
            graph = self._graphs[batch.size]
            if graph is None:
                try:
                    with self._rates.capturable():
                        graph = Graph(forward_backward, optimizer_step, batch.to(self._device), self._pool)
                except RuntimeError as error:  # which leaves CUDA's state such that nothing can go on
                    reason = str(error).partition("\n")[0]
                    raise UserError(
                        f"this GPU cannot capture steps as CUDA graphs ({reason}): give --cuda_graphs no"
                    ) from error
                self._graphs[batch.size], self._pool = graph, graph.pool
            return *graph.replay(batch), batch.size


class Graph:
    """One shape's step, and the memory that it finds its batch in."""

    def __init__(
        self, forward_backward: ForwardBackward, optimizer_step: OptimizerStep, batch: Batch, pool: Any
    ) -> None:
        self._batch = batch
        self._graph = torch.cuda.CUDAGraph()
        # What other threads ask of the GPU meanwhile is no business of the capture.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._result = forward_backward([(batch, 1.0)]), optimizer_step()
        self.pool = self._graph.pool()

    def replay(self, batch: Batch) -> StepResult:
        """Copy a batch of the graph's shape to where the graph finds it, and take its step."""
        for own, new in zip(self._batch.tensors(), batch.tensors(), strict=True):
            own.copy_(new.pin_memory(), non_blocking=True)
        self._graph.replay()
        loss, norm = self._result
        return loss.clone(), norm.clone()  # the next graph may use their memory
