"""torch's FSDP2 (`fully_shard`): weights, gradients and AdamW's state are spread over the ranks as DTensors."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from sst2.distributed.strategies.sharded import ShardedStrategy


class FSDP2Strategy(ShardedStrategy):
    """Args are those of `Strategy`; `groups` are AdamW's parameter groups with names for "params"."""

    own_phases = ()  # each layer's weights are gathered, in forward passes as well

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        groups: list[dict[str, Any]],
    ) -> None:
        super().__init__(accelerator, model, model, optimizer)
        self._parameters = dict(model.named_parameters())
        self._groups = groups

    def _watch_backward(self) -> None:
        # A hook on a parameter would come after its gradient is shared.
        model: Any = self._bare_model
        model.get_input_embeddings().register_forward_hook(self._watch)

    def _watch(self, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(self.waiting.begin)

    def clip_and_step(self, max_norm: float) -> torch.Tensor:
        """Clip and take the step; the norm is gathered, so that each rank has all of it."""
        norm = self._clip_then_step(max_norm)
        self.optimizer.zero_grad()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Take over weights, which every rank brings whole; raises as `ShardedStrategy.load_weights`."""
        super().load_weights(weights)
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # else what an evaluation has gathered, and kept, would be used once more

    def _gather_full(self, parameter: nn.Parameter, moment: str | None) -> torch.Tensor:
        tensor = parameter if moment is None else self.optimizer.state[parameter][moment]
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    @torch.no_grad()
    def _load_shard(self, parameter: nn.Parameter, moment: str | None, value: torch.Tensor) -> None:
        own = parameter if moment is None else self.optimizer.state[parameter][moment]
        if isinstance(own, DTensor):
            value = distribute_tensor(value.to(own.device, own.dtype), own.device_mesh, own.placements)
        own.copy_(value)

    def _local_shards(self) -> list[torch.Tensor]:
        return list(self._parameters.values())
