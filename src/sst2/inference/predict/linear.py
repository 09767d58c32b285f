"""Linear layers by oneDNN where that is faster: torch multiplies float32 by MKL, which spares AMD's CPUs its best code.

For inference: the operator has no gradient.
"""

import math
import time
from collections.abc import Callable
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from sst2.models.packed_classifier import CPU_TOKENS

MIN_GAIN = 1.3  # at which oneDNN is taken: well above what measuring is off by, so that a machine always answers alike
SHAPE = (448, 768, 768)  # rows and both widths to measure with, of DistilBERT-base


def use_faster_linear(model: nn.Module) -> None:
    """Have the linear layers of a model in float32 on the CPU computed by oneDNN, if it is the faster library here."""
    if onednn_gain() >= MIN_GAIN:
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = _Linear


class _Linear(nn.Linear):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        # Packed batches alone: oneDNN generates code for every number of rows that it meets.
        if values.shape[-2] % CPU_TOKENS or torch.is_grad_enabled():
            return super().forward(values)
        return by_onednn(values, self.weight, self.bias)


def by_onednn(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`torch.nn.functional.linear` in float32, by the operator that torch.compile takes for it."""
    applied: torch.Tensor = torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
    return applied


@cache
def onednn_gain() -> float:
    """How many times as fast as torch's own linear layer oneDNN's is on this CPU; 0 where torch does not offer it."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return 0.0
    rows, inputs, outputs = SHAPE
    values, weight, bias = torch.ones(rows, inputs), torch.ones(outputs, inputs), torch.ones(outputs)
    ways: tuple[Callable[..., torch.Tensor], ...] = (F.linear, by_onednn)
    best = [math.inf, math.inf]  # seconds of each
    for _ in range(5):  # the first prepares what later ones use
        for number, linear in enumerate(ways):
            started = time.perf_counter()
            linear(values, weight, bias)
            best[number] = min(best[number], time.perf_counter() - started)
    return best[0] / best[1]
