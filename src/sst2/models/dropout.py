"""Dropout that takes 16 random bits for each element, where torch's takes 64 on a CPU, one after another."""

import torch
from torch import nn

_STEPS = 2**16  # probabilities are multiples of 1 / _STEPS


def dropout(values: torch.Tensor, probability: float) -> torch.Tensor:
    """Zero each element with `probability`, independently, and scale the others so that the mean stays.

    The result is rounded to the dtype, as by torch.

    Args:
        values: any shape, floating.
        probability: 0 to below 1. On CPUs it is rounded to a multiple of 2**-16, and the scale is that of the rounded
            one.
    """
    if values.device.type != "cpu":
        return nn.functional.dropout(values, probability)
    dropped = min(round(probability * _STEPS), _STEPS - 1)
    if dropped == 0:
        return values
    words = torch.empty((values.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)  # four elements each
    bits = words.view(torch.int16)[: values.numel()].view(values.shape)
    kept = (bits >= dropped - _STEPS // 2).to(values.dtype)
    return values * kept.mul_(_STEPS / (_STEPS - dropped))


class Dropout(nn.Dropout):
    """The same as a module."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Drop elements in training; the values as they are in evaluation."""
        return dropout(values, self.p) if self.training and self.p else values
