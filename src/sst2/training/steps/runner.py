"""How a step is run: operation by operation, or in parts that are captured as CUDA graphs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from sst2.data.collation import Batch, MicroBatches
from sst2.distributed.strategies.strategy import Strategy

Number = float | torch.Tensor  # on the host, or () float32 where a graph finds it
# Of micro-batches and the step's divisor: leaves gradients, and returns the sum of losses, ().
ForwardBackward = Callable[[MicroBatches, Number], torch.Tensor]
OptimizerStep = Callable[[], torch.Tensor]  # uses the gradients up, and returns their norm, ()
# Of the sum of losses, the gradient norm and the weight of the sentences: adds them to the metrics of steps.
Count = Callable[[torch.Tensor, torch.Tensor, Number], None]


@dataclass(frozen=True)
class Step:
    """One rank's share of an optimizer step.

    Attributes:
        micro_batches: indices of the sentences of each, and the weight of each of them in it, 1.0 or 0.0.
        divisor: what the losses of all ranks are divided by.
        loss_weight: the weights of this rank's sentences in the loss, added up.
    """

    micro_batches: list[tuple[np.ndarray, float]]
    divisor: float
    loss_weight: float


class StepRunner:
    """Runs steps eagerly, operation by operation.

    Args:
        strategy: whose model is trained.
        collate: makes a batch, on the CPU, of the training sentences with these indices.
        count: called with what came of each step.

    Attributes:
        has_graphs: whether shapes that come again are captured.
    """

    has_graphs = False

    def __init__(self, strategy: Strategy, collate: Callable[[np.ndarray], Batch], count: Count) -> None:
        self._strategy, self._collate, self._count = strategy, collate, count

    def run(
        self, step: Step, forward_backward: ForwardBackward, optimizer_step: OptimizerStep
    ) -> tuple[torch.Tensor, int]:
        """Run a step. All ranks call it.

        Returns:
            The gradient norm of all ranks, () float32, and the tokens of this rank, padding included.
        """
        micro_batches = [(self._collate(indices), weight) for indices, weight in step.micro_batches]
        return self._run_eagerly(micro_batches, step, step.divisor, forward_backward, optimizer_step)

    def padded(self, sentences: int, tokens: int) -> int:  # noqa: ARG002 (graphs have slots for sentences)
        """Tokens that a packed micro-batch of that many sentences and tokens has as it is run."""
        return tokens

    def _run_eagerly(
        self,
        micro_batches: MicroBatches,
        step: Step,
        divisor: Number,
        forward_backward: ForwardBackward,
        optimizer_step: OptimizerStep,
    ) -> tuple[torch.Tensor, int]:
        loss_sum = forward_backward(micro_batches, divisor)
        self._strategy.reduce_gradients()
        grad_norm = optimizer_step()
        self._count(loss_sum, grad_norm, step.loss_weight)
        return grad_norm, sum(batch.size for batch, _ in micro_batches)


class RatesInMemory:
    """The learning rates of an optimizer's groups where its device finds them: a graph repeats all other numbers.

    A step that is run eagerly reads the same ones, so that it rounds as a captured one does.

    Args:
        optimizer: whose groups have rates as a schedule sets them.
        tensors: () float32 for each group, which are filled by others.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, tensors: list[torch.Tensor]) -> None:
        self._groups, self._tensors = optimizer.param_groups, tensors

    @property
    def of_schedule(self) -> list[float]:
        """The rates of the step to come."""
        return [group["lr"] for group in self._groups]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Around a step: the optimizer reads the tensors."""
        rates = self.of_schedule
        for group, tensor in zip(self._groups, self._tensors, strict=True):
            group["lr"] = tensor
        try:
            yield
        finally:
            for group, rate in zip(self._groups, rates, strict=True):
                group["lr"] = rate

    @contextmanager
    def capturable(self) -> Iterator[None]:
        """Around a capture: the optimizer wants to be told of it."""
        for group in self._groups:
            group["capturable"] = True
        try:
            yield
        finally:
            for group in self._groups:
                group["capturable"] = False


def has_room(device: torch.device) -> bool:
    """Whether another step fits the GPU beside all that is there."""
    free, _ = torch.cuda.mem_get_info(device)
    return free > torch.cuda.max_memory_allocated(device)
