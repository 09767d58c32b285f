"""Weights and gradients in flat buffers on every rank, and one collective on the latter after the backward pass.

DistributedDataParallel shares gradients from hooks within the backward pass, which a CUDA graph cannot hold. Here a
step has three parts: forward and backward passes, which end in the buffer; the collective; clipping and AdamW. The
first and the last need no other rank, so that each of them can be a graph.
"""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import distributed, nn

from sst2.distributed.strategies.compute_weights import ComputeWeights, linear_layers
from sst2.distributed.strategies.flat_adamw import FlatAdamW, difference
from sst2.distributed.strategies.flat_buffers import flat_buffer, flat_size
from sst2.distributed.strategies.strategy import Strategy
from sst2.kernels import obstacle
from sst2.models.fused_blocks import FusedBlocks
from sst2.models.packed_classifier import PackedClassifier

logger = logging.getLogger(__name__)


class FlatStrategy(Strategy):
    """The whole state on every rank, on one process as on many.

    Args:
        accelerator: knows the ranks.
        bare_model: the stock model.
        model: the same in its precision, or compiled, but not wrapped for several processes.
        optimizer: AdamW, as wrapped by accelerate.
        compress: whether gradients are rounded to bf16 on their way between ranks.
        kernels: whether blocks and AdamW use kernels, where these work.

    Attributes:
        blocks_by_kernel: whether blocks do: it was asked for, and works on all ranks.
    """

    blocks_by_kernel = False

    def __init__(
        self,
        accelerator: Accelerator,
        bare_model: nn.Module,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        compress: bool = False,
        kernels: bool = False,
    ) -> None:
        super().__init__(accelerator, bare_model, model, optimizer)
        if distributed.is_initialized():  # hosts may draw a new head that differs in its last bits
            for tensor in bare_model.state_dict().values():
                distributed.broadcast(tensor, src=0)
        # A weight that no logit depends on has no gradient on any rank.
        idle: frozenset[str] = getattr(bare_model, "idle", frozenset())
        trained = [weight for name, weight in bare_model.named_parameters() if name not in idle]
        layers = linear_layers(bare_model, trained) if accelerator.mixed_precision == "bf16" else []
        segments = self._in_segments(trained, layers)
        self._trained = [weight for segment in segments for weight in segment]
        masters, views = flat_buffer(self._trained, torch.float32)
        for weight, view in zip(self._trained, views, strict=True):
            weight.data = view.copy_(weight.detach())
        self._gradients, self._views = flat_buffer(self._trained, torch.float32)
        self._sent = self._gradients.to(torch.bfloat16) if compress else self._gradients
        self._is_empty = True  # the buffer, as the backward pass finds it
        self._compute_weights: ComputeWeights | None = None
        self._adamw: FlatAdamW | None = None
        if layers:
            rounded = [*segments[0], *segments[1]]
            self._compute_weights = ComputeWeights(layers, rounded, masters[: flat_size(rounded)])
        if kernels:
            assert isinstance(bare_model, PackedClassifier)
            dtype = torch.bfloat16 if layers else torch.float32
            fused = FusedBlocks(bare_model, self._leaf, dtype)
            self.blocks_by_kernel = self._all_agree("torch's small operations remain", fused.why_not)
            if not self.blocks_by_kernel:
                fused.undo()
            if self._all_agree("AdamW is torch's", obstacle(self.device) or difference(self.device, dtype)):
                rounded_copy = self._compute_weights.rounded if self._compute_weights else None
                self._adamw = FlatAdamW(self.optimizer, segments, masters, self._gradients, rounded_copy)

    def _all_agree(self, instead: str, why_not: str) -> bool:
        """Whether kernels work on all ranks: one that went another way would come to weights of its own."""
        works = torch.tensor(float(not why_not), device=self.device)
        if distributed.is_initialized():
            distributed.all_reduce(works, distributed.ReduceOp.MIN)
        if not works:
            reason = why_not or "does not work on another rank"
            logger.warning("--kernels triton %s: %s", reason, instead)
        return bool(works)

    def _in_segments(self, trained: list[nn.Parameter], layers: list[nn.Linear]) -> list[list[nn.Parameter]]:
        """Weights of linear layers that are rounded, and others; each by the group of the optimizer, 0 or another."""
        rounded = {id(weight) for layer in layers for weight in layer.parameters()}
        first = {id(weight) for weight in self.optimizer.param_groups[0]["params"]}
        segments: list[list[nn.Parameter]] = [[], [], [], []]
        for weight in trained:
            segments[2 * (id(weight) not in rounded) + (id(weight) not in first)].append(weight)
        return segments

    def _watch_backward(self) -> None:
        """Nothing: ranks wait for each other in `reduce_gradients` alone."""

    @property
    def fits_a_graph(self) -> bool:
        """Whether passes, and the optimizer's step, can each be captured: the model as it is, not compiled."""
        return self.model is self._bare_model

    @property
    def steps_by_kernel(self) -> bool:
        """Whether AdamW is one kernel: it was asked for, and works on all ranks."""
        return self._adamw is not None

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
        self._is_empty = True
        if self._adamw is not None:
            return self._adamw.step(max_norm)
        for weight, view in zip(self._trained, self._views, strict=True):
            weight.grad = view
        norm = super().clip_and_step(max_norm)
        self._round_weights()
        return norm

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Take over weights: see `Strategy.load_weights`."""
        super().load_weights(weights)
        self._round_weights()

    def _leaves(self) -> list[torch.Tensor]:
        """Where a backward pass leaves the gradient of each weight."""
        return [self._leaf(weight) for weight in self._trained]

    def _leaf(self, weight: nn.Parameter) -> torch.Tensor:
        return weight if self._compute_weights is None else self._compute_weights.leaf(weight)

    def _round_weights(self) -> None:
        if self._compute_weights is not None:
            self._compute_weights.refresh()
