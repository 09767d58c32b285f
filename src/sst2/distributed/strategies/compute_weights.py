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

ALIGNMENT = 256  # numbers: each weight begins at a multiple of 512 bytes, as what torch allocates on a GPU does


def flat_buffer(weights: Sequence[nn.Parameter], dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Zeros in one buffer, and views of it that have the shapes of these weights."""
    places = [-(-weight.numel() // ALIGNMENT) * ALIGNMENT for weight in weights]
    buffer = torch.zeros(sum(places), device=weights[0].device if weights else None, dtype=dtype)
    parts = zip(buffer.split(places), weights, strict=True)
    return buffer, [part[: weight.numel()].view_as(weight) for part, weight in parts]


class ComputeWeights:
    """What the linear layers of a model compute with, in training and evaluation.

    Modules keep their float32 weights, which become views of a flat buffer: their names, `state_dict` and optimizer
    stay what they were. All calls of the model need autocast to bf16, which casts what the layers are given.

    Args:
        model: changed in place. A layer's weights are used by its `forward` alone, or `backward` of the strategy ends.
        trained: the weights that have gradients. A layer with another one stays as it is.
    """

    def __init__(self, model: nn.Module, trained: Sequence[nn.Parameter]) -> None:
        known = {id(weight) for weight in trained}
        layers = [
            module
            for module in model.modules()
            if type(module) is nn.Linear and {id(weight) for weight in module.parameters()} <= known
        ]
        masters = list({id(weight): weight for layer in layers for weight in layer.parameters()}.values())
        self._masters, views = flat_buffer(masters, torch.float32)
        self._rounded, rounded = flat_buffer(masters, torch.bfloat16)
        for weight, view in zip(masters, views, strict=True):
            view.copy_(weight.detach())
            weight.data = view
        self._leaves = {id(weight): leaf.requires_grad_() for weight, leaf in zip(masters, rounded, strict=True)}
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
        self._rounded.copy_(self._masters)
