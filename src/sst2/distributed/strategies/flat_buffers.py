"""Weights, and what belongs to each of them, laid end to end in one buffer."""

from collections.abc import Sequence

import torch
from torch import nn

ALIGNMENT = 256  # numbers: each weight begins at a multiple of 512 bytes, as what torch allocates on a GPU does


def flat_buffer(weights: Sequence[nn.Parameter], dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Zeros in one buffer, and views of it that have the shapes of these weights."""
    sizes = [flat_size([weight]) for weight in weights]
    buffer = torch.zeros(sum(sizes), device=weights[0].device if weights else None, dtype=dtype)
    parts = zip(buffer.split(sizes), weights, strict=True)
    return buffer, [part[: weight.numel()].view_as(weight) for part, weight in parts]


def flat_size(weights: Sequence[nn.Parameter]) -> int:
    """Numbers that these weights take in a buffer."""
    return sum(-(-weight.numel() // ALIGNMENT) * ALIGNMENT for weight in weights)
