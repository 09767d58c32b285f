"""AdamW for weights in flat buffers as one Triton kernel: it clips, skips what is not finite, and rounds to bf16.

torch's fused AdamW writes gradients back to clip them, and rounding is an operation of its own: 38 bytes of a parameter
are read or written, and 30 here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

SIZE = 1024  # parameters of a program


@dataclass(frozen=True)
class Group:
    """What differs between two groups of parameters: `lr`, () float32 on the device, and the decay of weights."""

    lr: torch.Tensor
    weight_decay: float


def adamw(
    weights: torch.Tensor,
    average: torch.Tensor,
    average_sq: torch.Tensor,
    gradients: torch.Tensor,
    rounded: torch.Tensor | None,
    *,
    groups: tuple[Group, Group],
    ends: Sequence[int],
    step: torch.Tensor,
    norm: torch.Tensor,
    max_norm: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """A step of AdamW (Loshchilov and Hutter, 2019), in place; none where `norm` is not finite.

    Args:
        weights: (places,) float32; so are the moments and gradients. What lies between two weights is 0 in all.
        average: first moment.
        average_sq: second moment.
        gradients: as they came; they stay what they are.
        rounded: (first places,) bf16, what their weights are rounded to; or None.
        groups: the first one's weights lie before place `ends[0]`, and from `ends[1]` to before `ends[2]`.
        ends: three places.
        step: () float32, the number of this step from 1 on.
        norm: () float32, of the gradients.
        max_norm: to clip them to; 0 does not clip.
        betas: decays of the moments.
        eps: added to the root of the second moment.
    """
    count = len(weights)
    steps = step.double()  # 1 - 0.999 in float32 is off by 5e-5
    corrections = torch.stack([1 - betas[0] ** steps, (1 - betas[1] ** steps).sqrt()]).float()
    _adamw[(triton.cdiv(count, SIZE),)](
        *(weights, average, average_sq, gradients, weights if rounded is None else rounded),
        *(groups[0].lr, groups[1].lr, corrections, norm, max_norm or math.inf),
        *(count, 0 if rounded is None else len(rounded), *ends),
        DECAY_0=groups[0].weight_decay,
        DECAY_1=groups[1].weight_decay,
        BETA_1=betas[0],
        BETA_2=betas[1],
        EPS=eps,
        SIZE=SIZE,
    )


@triton.jit
def _adamw(
    weights,
    average,
    average_sq,
    gradients,
    rounded,
    lr_0,
    lr_1,
    corrections,
    norms,
    max_norm,
    count,
    rounded_count,
    end_0,
    end_1,
    end_2,
    DECAY_0: tl.constexpr,
    DECAY_1: tl.constexpr,
    BETA_1: tl.constexpr,
    BETA_2: tl.constexpr,
    EPS: tl.constexpr,
    SIZE: tl.constexpr,
):
    norm = tl.load(norms)
    correction_1, correction_2 = tl.load(corrections), tl.load(corrections + 1)
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    there = at < tl.where(norm - norm == 0.0, count, 0)  # the norm is finite
    is_first = (at < end_0) | ((at >= end_1) & (at < end_2))
    lr = tl.where(is_first, tl.load(lr_0), tl.load(lr_1))
    decay = tl.where(is_first, DECAY_0, DECAY_1)
    gradient = tl.load(gradients + at, mask=there, other=0.0) / tl.maximum(norm / max_norm, 1.0)
    first = tl.load(average + at, mask=there, other=0.0)
    first += (1.0 - BETA_1) * (gradient - first)
    second = tl.load(average_sq + at, mask=there, other=0.0)
    second = BETA_2 * second + (1.0 - BETA_2) * gradient * gradient
    weight = tl.load(weights + at, mask=there, other=0.0)
    weight -= lr * decay * weight
    weight -= lr / correction_1 * first / (tl.sqrt(second) / correction_2 + EPS)
    tl.store(average + at, first, mask=there)
    tl.store(average_sq + at, second, mask=there)
    tl.store(weights + at, weight, mask=there)
    tl.store(rounded + at, weight.to(rounded.dtype.element_ty), mask=there & (at < rounded_count))
