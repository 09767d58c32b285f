"""How a step is run: operation by operation, or in parts that are captured as CUDA graphs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from sst2.data.collation import MicroBatches
from sst2.distributed.strategies.strategy import Strategy

ForwardBackward = Callable[[MicroBatches], torch.Tensor]  # leaves gradients, and returns the sum of losses, ()
OptimizerStep = Callable[[], torch.Tensor]  # uses them up, and returns their norm, ()
StepResult = tuple[torch.Tensor, torch.Tensor]  # the sum of a step's losses and its gradient norm, () each


class StepRunner:
    """Runs steps eagerly, operation by operation."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy

    def run(
        self, micro_batches: MicroBatches, forward_backward: ForwardBackward, optimizer_step: OptimizerStep
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Run a step on this rank's micro-batches, which are on the host. All ranks call it.

        Returns:
            What the two functions have returned, and the tokens that the first was given, padding included.
        """
        loss_sum = forward_backward(micro_batches)
        self._strategy.reduce_gradients()
        return loss_sum, optimizer_step(), sum(batch.size for batch, _ in micro_batches)


class RatesInMemory:
    """The learning rates of an optimizer's groups where its device finds them: a graph repeats all other numbers.

    A step that is run eagerly reads the same ones, so that it rounds as a captured one does.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._groups = optimizer.param_groups
        self._rates = [torch.zeros((), device=device) for _ in self._groups]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Around a step: its rates are those that the schedule has set, in float32."""
        rates = [group["lr"] for group in self._groups]
        for group, rate, in_memory in zip(self._groups, rates, self._rates, strict=True):
            group["lr"] = in_memory.fill_(rate)
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
