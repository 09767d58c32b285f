"""The weights of linear layers in bf16 beside their float32 masters, each kind in one flat buffer.

Autocast casts every weight to bf16 in each forward pass, and every gradient back: in a step of DistilBERT, 152
operations, most of them tiny, beside those that do the work. Here one copy after AdamW's step does the first, and
gradients are cast where they are written to the buffer of gradients anyway. Results are those of autocast, which
computes with the same bf16 weights and rounds the same gradients: on CPUs, bit for bit.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from sst2.distributed.strategies.flat_buffers import flat_buffer


def linear_layers(model: nn.Module, trained: Sequence[nn.Parameter]) -> list[nn.Linear]:
    """Those that may compute with other weights: torch's own, all of whose weights have gradients."""
    known = {id(weight) for weight in trained}
    return [
        module
        for module in model.modules()
        if type(module) is nn.Linear and {id(weight) for weight in module.parameters()} <= known
    ]


class ComputeWeights:
    """What the linear layers of a model compute with, in training and evaluation.

    Modules keep their float32 weights: their names, `state_dict` and optimizer stay what they were. All calls of the
    model need autocast to bf16, which casts what the layers are given.

    Args:
        layers: changed in place. Their weights are used by their `forward` alone, or `backward` of the strategy ends.
        weights: of these layers, each one once.
        masters: the flat buffer whose views these weights are.

    Attributes:
        rounded: the flat buffer of the weights in bf16.
    """

    def __init__(self, layers: Sequence[nn.Linear], weights: Sequence[nn.Parameter], masters: torch.Tensor) -> None:
        self._masters = masters
        self.rounded, rounded = flat_buffer(weights, torch.bfloat16)
        self._leaves = {id(weight): leaf.requires_grad_() for weight, leaf in zip(weights, rounded, strict=True)}
        for layer in layers:
            own = {name: self.leaf(weight) for name, weight in layer.named_parameters()}
            layer.forward = partial(F.linear, weight=own["weight"], bias=own.get("bias"))  # type: ignore[method-assign]
        self.refresh()

    def leaf(self, weight: nn.Parameter) -> torch.Tensor:
        """What gets the gradient of a weight: its rounded copy, or itself where it has none."""
        return self._leaves.get(id(weight), weight)

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the masters anew, after they have changed."""
        self.rounded.copy_(self._masters)
