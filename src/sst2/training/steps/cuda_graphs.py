"""Optimizer steps as CUDA graphs: captured once for each shape, then replayed whole.

A step of DistilBERT on some hundred tokens is over a thousand small operations. Asking for them one by one takes a host
several times as long as a GPU needs to do them; a graph is asked for at once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sst2.data.collation import Batch
from sst2.distributed.strategies.strategy import Strategy
from sst2.training.steps.buckets import Buckets
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


class CudaGraphRunner(StepRunner):
    """Replays steps of full batches, and runs others eagerly. A shape that comes again is captured.

    The first time, the step is run as it would be without this class; libraries then prepare what they cannot prepare
    in a capture. Nothing is captured for which the GPU has no room: graphs keep their memory, all in one pool, and
    steps without one need theirs beside it.

    Args:
        strategy: of one process; the learning rates of its optimizer may change from step to step, nothing else.
        collate: as of `StepRunner`.
        count: as of `StepRunner`.
        buckets: of its steps.
        start_phase: called with `graph` when a step is replayed or captured.
    """

    has_graphs = True

    def __init__(
        self,
        strategy: Strategy,
        collate: Callable[[np.ndarray], Batch],
        count: Count,
        buckets: Buckets,
        start_phase: Callable[[str], None],
    ) -> None:
        super().__init__(strategy, collate, count)
        self._buckets, self._start_phase, self._device = buckets, start_phase, strategy.device
        groups = strategy.optimizer.param_groups
        self._divisor, *self._rate_tensors = torch.zeros(1 + len(groups), device=strategy.device).unbind()
        self._rates = RatesInMemory(strategy.optimizer, self._rate_tensors)
        self._graphs: dict[int, Graph | None] = {}  # by number of tokens; None where there is none yet
        self._pool: Any = None

    @property
    def captured(self) -> int:
        """Number of shapes that are captured."""
        return sum(graph is not None for graph in self._graphs.values())

    def run(
        self, step: Step, forward_backward: ForwardBackward, optimizer_step: OptimizerStep
    ) -> tuple[torch.Tensor, int]:
        """Run a step: see `StepRunner.run`.

        Raises:
            UserError: the device refuses to capture it.
        """
        for tensor, rate in zip(self._rate_tensors, self._rates.of_schedule, strict=True):
            tensor.fill_(rate)
        self._divisor.fill_(step.divisor)
        with self._rates.used():
            ((indices, weight),) = step.micro_batches
            batch = self._collate(indices)
            is_short = len(indices) != self._buckets.sentences  # an epoch's last step
            if not is_short:
                batch = self._buckets.pad(batch)
                self._start_phase("graph")
            if is_short or batch.size not in self._graphs or not (self._graphs[batch.size] or has_room(self._device)):
                if not is_short:
                    self._graphs.setdefault(batch.size, None)
                return self._run_eagerly([(batch, weight)], step, self._divisor, forward_backward, optimizer_step)
            graph = self._graphs[batch.size] or self._capture(batch, forward_backward, optimizer_step)
            loss_sum, grad_norm = graph.replay(batch)
            self._count(loss_sum, grad_norm, step.loss_weight)
            return grad_norm, batch.size

    def padded(self, sentences: int, tokens: int) -> int:
        """See `StepRunner.padded`."""
        return self._buckets.tokens(sentences, tokens) if sentences == self._buckets.sentences else tokens

    def _capture(self, batch: Batch, forward_backward: ForwardBackward, optimizer_step: OptimizerStep) -> "Graph":
        def whole_step(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            return forward_backward([(batch, 1.0)], self._divisor), optimizer_step()

        try:
            with self._rates.capturable():
                graph = Graph(whole_step, batch.to(self._device), self._pool)
        except RuntimeError as error:  # which leaves CUDA's state such that nothing can go on
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"this GPU cannot capture steps as CUDA graphs ({reason}): give --cuda_graphs no"
            ) from error
        self._graphs[batch.size], self._pool = graph, graph.pool
        return graph


class Graph:
    """One shape's step, and the memory that it finds its batch in."""

    def __init__(
        self, whole_step: Callable[[Batch], tuple[torch.Tensor, torch.Tensor]], batch: Batch, pool: Any
    ) -> None:
        self._batch = batch
        self._graph = torch.cuda.CUDAGraph()
        # What other threads ask of the GPU meanwhile is no business of the capture.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._result = whole_step(batch)
        self.pool = self._graph.pool()

    def replay(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy a batch of the graph's shape to where the graph finds it, and take its step.

        Returns:
            The sum of losses and the gradient norm, () float32 each.
        """
        for own, new in zip(self._batch.tensors(), batch.tensors(), strict=True):
            own.copy_(new.pin_memory(), non_blocking=True)
        self._graph.replay()
        loss, norm = self._result
        return loss.clone(), norm.clone()  # the next graph may use their memory
