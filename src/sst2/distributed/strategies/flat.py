"""One flat buffer of gradients on every rank, and one collective on it after the backward pass.

DistributedDataParallel shares gradients from hooks within the backward pass, which a CUDA graph cannot hold. Here a
step has three parts: forward and backward passes, which end in the buffer; the collective; clipping and AdamW. The
first and the last need no other rank, so that each of them can be a graph.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import distributed, nn

from sst2.distributed.strategies.compute_weights import ComputeWeights, flat_buffer
from sst2.distributed.strategies.strategy import Strategy


class FlatStrategy(Strategy):
    """The whole state on every rank, on one process as on many.

    Args:
        accelerator: knows the ranks.
        bare_model: the stock model.
        model: the same in its precision, or compiled, but not wrapped for several processes.
        optimizer: AdamW, as wrapped by accelerate.
        compress: whether gradients are rounded to bf16 on their way between ranks.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        bare_model: nn.Module,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        compress: bool = False,
    ) -> None:
        super().__init__(accelerator, bare_model, model, optimizer)
        if distributed.is_initialized():  # hosts may draw a new head that differs in its last bits
            for tensor in bare_model.state_dict().values():
                distributed.broadcast(tensor, src=0)
        # A weight that no logit depends on has no gradient on any rank.
        idle: frozenset[str] = getattr(bare_model, "idle", frozenset())
        self._trained = [weight for name, weight in bare_model.named_parameters() if name not in idle]
        self._gradients, self._views = flat_buffer(self._trained, torch.float32)
        self._sent = self._gradients.to(torch.bfloat16) if compress else self._gradients
        self._is_empty = True  # the buffer, as the backward pass finds it
        is_in_bf16 = accelerator.mixed_precision == "bf16"
        self._compute_weights = ComputeWeights(bare_model, self._trained) if is_in_bf16 else None

    def _watch_backward(self) -> None:
        """Nothing: ranks wait for each other in `reduce_gradients` alone."""

    @property
    def fits_a_graph(self) -> bool:
        """Whether passes, and the optimizer's step, can each be captured: the model as it is, not compiled."""
        return self.model is self._bare_model

    def empty_gradients(self, zeros: bool) -> None:
        """Forget gradients. The next backward pass adds to zeros, or writes over what is there, which is less work."""
        if zeros:
            self._gradients.zero_()
        self._is_empty = not zeros

    def reset_gradients(self) -> None:
        """Forget gradients wherever they are, also those that a pass which failed has left on the way."""
        for leaf in (*self._trained, *self._leaves()):
            leaf.grad = None
        self._gradients.zero_()
        self._is_empty = True

    def prepare_optimizer(self, optimizer_step: Callable[[], object]) -> None:
        """Have AdamW make its state, if it has none: by a step that changes nothing, since it is not finite."""
        self._gradients.fill_(math.nan)
        optimizer_step()
        self._gradients.zero_()  # what lies between the gradients is written by nobody else

    def backward(self, loss: torch.Tensor) -> None:
        """Add this rank's part of the gradient of `loss`, averaged over the ranks, to the buffer."""
        self._accelerator.backward(loss / self._accelerator.num_processes)
        leaves = self._leaves()
        beside = [weight for weight, leaf in zip(self._trained, leaves, strict=True) if leaf is not weight]
        assert all(weight.grad is None for weight in beside), "a linear layer's weight is used beside its forward"
        for dtype in {leaf.dtype for leaf in leaves}:  # copied in one operation on a GPU, added up one by one
            pairs = [pair for pair in zip(self._views, leaves, strict=True) if pair[1].dtype == dtype]
            views = [view for view, _ in pairs]
            gradients: Any = [leaf.grad for _, leaf in pairs]  # which all of them have
            if self._is_empty:
                torch._foreach_copy_(views, gradients)
            else:
                torch._foreach_add_(views, gradients)
        self._is_empty = False
        for leaf in leaves:
            leaf.grad = None  # so that the next pass writes a new one instead of adding to it

    def reduce_gradients(self) -> None:
        """Add up the buffers of all ranks. All ranks call it."""
        if not distributed.is_initialized():  # a process group may be of one rank
            return
        self.waiting.begin()
        if self._sent is not self._gradients:
            self._sent.copy_(self._gradients)
        distributed.all_reduce(self._sent)
        if self._sent is not self._gradients:
            self._gradients.copy_(self._sent)
        self.waiting.end()

    def clip_and_step(self, max_norm: float) -> torch.Tensor:
        """Clip and take the step: see `Strategy.clip_and_step`."""
        for weight, view in zip(self._trained, self._views, strict=True):
            weight.grad = view
        norm = super().clip_and_step(max_norm)
        self._is_empty = True
        self._round_weights()
        return norm

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Take over weights: see `Strategy.load_weights`."""
        super().load_weights(weights)
        self._round_weights()

    def _leaves(self) -> list[torch.Tensor]:
        """Where a backward pass leaves the gradient of each weight."""
        if self._compute_weights is None:
            return list(self._trained)
        return [self._compute_weights.leaf(weight) for weight in self._trained]

    def _round_weights(self) -> None:
        if self._compute_weights is not None:
            self._compute_weights.refresh()
