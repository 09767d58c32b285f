"""The small operations between a block's matrix products as Triton kernels, which read and write each number once.

Bias, dropout, residual and LayerNorm are one; bias and GELU another. Their backward passes also add up the gradients of
the bias of the product before them, which torch does by an operation of its own. Sums are in float32 and in a fixed
order, so that a step has the same gradients each time.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import nn

from sst2.kernels import dropout

PROGRAMS = 256  # that share the rows of a backward pass, two for each multiprocessor: each leaves sums of its own
NORM_ROWS = 1  # that a program takes at once
COLUMNS = 256  # of a block of GELU's
ROWS = 8  # of the same

_ROOT_HALF = tl.constexpr(0.7071067811865476)
_ROOT_TWO_PI = tl.constexpr(2.5066282746310002)


def add_norm(
    hidden: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor, norm: nn.LayerNorm, probability: float
) -> torch.Tensor:
    """`norm(residual + dropout(hidden + bias))`.

    Args:
        hidden: (..., width), a product without its bias; so is the result, in its type.
        bias: (width,).
        residual: as `hidden`, in any type.
        norm: over the last dimension, with weight and bias.
        probability: of dropout.
    """
    seed, threshold = dropout.drawn(probability, hidden.device)
    normed: torch.Tensor = _AddNorm.apply(hidden, bias, residual, norm.weight, norm.bias, norm.eps, seed, threshold)
    return normed


def bias_gelu(hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`gelu(hidden + bias)` by the error function (Hendrycks and Gimpel, 2016); `hidden` is (..., width)."""
    activated: torch.Tensor = _BiasGelu.apply(hidden, bias)
    return activated


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        bias: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        shift: torch.Tensor,
        eps: float,
        seed: torch.Tensor | None,
        threshold: int,
    ) -> torch.Tensor:
        hidden, residual = hidden.contiguous(), residual.contiguous()
        width = hidden.shape[-1]
        rows = hidden.numel() // width
        normed = torch.empty_like(hidden)
        mean, scale = torch.empty((2, rows), dtype=torch.float32, device=hidden.device)
        seed = mean if seed is None else seed  # nobody reads it then
        ctx.options = {"WIDTH": width, "SIZE": triton.next_power_of_2(width), "ROWS": NORM_ROWS, "THRESHOLD": threshold}
        tensors = hidden, bias, residual, weight, shift, normed, mean, scale, seed
        _add_norm[(triton.cdiv(rows, NORM_ROWS),)](*tensors, rows, eps, **ctx.options)
        ctx.save_for_backward(hidden, bias, residual, weight, shift, mean, scale, seed)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        hidden, bias, residual, weight, shift, mean, scale, seed = ctx.saved_tensors
        rows = len(mean)
        programs = min(PROGRAMS, triton.cdiv(rows, NORM_ROWS))
        of_hidden, of_residual = torch.empty_like(hidden), torch.empty_like(residual)
        sums = torch.empty((programs, 3, hidden.shape[-1]), dtype=torch.float32, device=hidden.device)
        _add_norm_backward[(programs,)](
            *(hidden, bias, residual, weight, mean, scale, grad.contiguous(), of_hidden, of_residual, sums, seed, rows),
            **ctx.options,
        )
        of_bias, of_weight, of_shift = sums.sum(0)
        of_all = of_hidden, of_bias.to(bias.dtype), of_residual, of_weight.to(weight.dtype), of_shift.to(shift.dtype)
        return *of_all, None, None, None


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        hidden = hidden.contiguous()
        width = hidden.shape[-1]
        rows = hidden.numel() // width
        activated = torch.empty_like(hidden)
        grid = (triton.cdiv(rows, ROWS), triton.cdiv(width, COLUMNS))  # of the second one, CUDA takes 65,535 at most
        _bias_gelu[grid](hidden, bias, activated, rows, WIDTH=width, ROWS=ROWS, COLUMNS=COLUMNS)
        ctx.save_for_backward(hidden, bias)
        return activated

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        hidden, bias = ctx.saved_tensors
        width = hidden.shape[-1]
        rows = hidden.numel() // width
        blocks = triton.cdiv(width, COLUMNS)
        programs = min(max(PROGRAMS // blocks, 1), triton.cdiv(rows, ROWS))
        of_hidden = torch.empty_like(hidden)
        sums = torch.empty((programs, width), dtype=torch.float32, device=hidden.device)
        _bias_gelu_backward[(programs, blocks)](
            hidden, bias, grad.contiguous(), of_hidden, sums, rows, WIDTH=width, ROWS=ROWS, COLUMNS=COLUMNS
        )
        return of_hidden, sums.sum(0).to(bias.dtype)


@triton.jit
def _summed(
    hidden,
    bias,
    residual,
    seed,
    first,
    rows,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    THRESHOLD: tl.constexpr,
):
    """Rows, (ROWS,), and of their elements, (ROWS, SIZE): places, which are there, the sums to norm, which are kept."""
    row = first + tl.arange(0, ROWS)
    column = tl.arange(0, SIZE)[None, :]
    there = (row < rows)[:, None] & (column < WIDTH)
    at = row.to(tl.int64)[:, None] * WIDTH + column
    own = tl.load(hidden + at, mask=there, other=0.0).to(tl.float32)
    own += tl.load(bias + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    kept = there
    if THRESHOLD > 0:
        kept = dropout.keep(tl.load(seed), row, 0, THRESHOLD, ROWS, SIZE)
        own = tl.where(kept, own * (65536.0 / (65536 - THRESHOLD)), 0.0)
    total = own + tl.load(residual + at, mask=there, other=0.0).to(tl.float32)
    return row, there, at, total, kept


@triton.jit
def _add_norm(
    hidden,
    bias,
    residual,
    weight,
    shift,
    normed,
    mean,
    scale,
    seed,
    rows,
    eps,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    THRESHOLD: tl.constexpr,
):
    first = tl.program_id(0) * ROWS
    row, there, at, total, _ = _summed(hidden, bias, residual, seed, first, rows, WIDTH, SIZE, ROWS, THRESHOLD)
    middle = tl.sum(total, 1) / WIDTH
    centered = tl.where(there, total - middle[:, None], 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(centered * centered, 1) / WIDTH + eps)
    column = tl.arange(0, SIZE)[None, :]
    of_weight = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    of_shift = tl.load(shift + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    tl.store(normed + at, (centered * factor[:, None] * of_weight + of_shift).to(normed.dtype.element_ty), mask=there)
    tl.store(mean + row, middle, mask=row < rows)
    tl.store(scale + row, factor, mask=row < rows)


@triton.jit
def _add_norm_backward(
    hidden,
    bias,
    residual,
    weight,
    mean,
    scale,
    grad,
    grad_hidden,
    grad_residual,
    sums,
    seed,
    rows,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    THRESHOLD: tl.constexpr,
):
    """Of all rows that are this program's, and the sums of bias, weight and shift over them."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, SIZE)
    own_weight = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]
    of_bias = tl.zeros((SIZE,), tl.float32)
    of_weight = tl.zeros((SIZE,), tl.float32)
    of_shift = tl.zeros((SIZE,), tl.float32)
    for first in range(program * ROWS, rows, programs * ROWS):
        row, there, at, total, kept = _summed(hidden, bias, residual, seed, first, rows, WIDTH, SIZE, ROWS, THRESHOLD)
        factor = tl.load(scale + row, mask=row < rows, other=0.0)[:, None]
        middle = tl.load(mean + row, mask=row < rows, other=0.0)[:, None]
        standard = tl.where(there, (total - middle) * factor, 0.0)
        own = tl.load(grad + at, mask=there, other=0.0).to(tl.float32)
        of_standard = own * own_weight
        along, across = tl.sum(of_standard * standard, 1) / WIDTH, tl.sum(of_standard, 1) / WIDTH
        of_total = (of_standard - standard * along[:, None] - across[:, None]) * factor
        of_total = tl.where(there, of_total, 0.0)
        tl.store(grad_residual + at, of_total.to(grad_residual.dtype.element_ty), mask=there)
        of_weight += tl.sum(own * standard, 0)
        of_shift += tl.sum(own, 0)
        if THRESHOLD > 0:
            of_total = tl.where(kept, of_total * (65536.0 / (65536 - THRESHOLD)), 0.0)
        tl.store(grad_hidden + at, of_total.to(grad_hidden.dtype.element_ty), mask=there)
        of_bias += tl.sum(of_total, 0)
    own_sums = sums + program * 3 * WIDTH + column
    tl.store(own_sums, of_bias, mask=column < WIDTH)
    tl.store(own_sums + WIDTH, of_weight, mask=column < WIDTH)
    tl.store(own_sums + 2 * WIDTH, of_shift, mask=column < WIDTH)


@triton.jit
def _biased(hidden, bias, first, rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Places of a program's columns in ROWS rows, whether they are there, and their sums with the bias, float32."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row = first + tl.arange(0, ROWS)
    there = (row < rows)[:, None] & (column < WIDTH)[None, :]
    at = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    own = tl.load(hidden + at, mask=there, other=0.0).to(tl.float32)
    return at, there, own + tl.load(bias + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _bias_gelu(hidden, bias, activated, rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    at, there, x = _biased(hidden, bias, tl.program_id(0) * ROWS, rows, WIDTH, ROWS, COLUMNS)
    x = 0.5 * x * (1.0 + tl.erf(x * _ROOT_HALF))
    tl.store(activated + at, x.to(activated.dtype.element_ty), mask=there)


@triton.jit
def _bias_gelu_backward(
    hidden, bias, grad, grad_hidden, sums, rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Of a block of columns in all rows that are this program's, and the sums over them."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    of_bias = tl.zeros((COLUMNS,), tl.float32)
    for first in range(program * ROWS, rows, programs * ROWS):
        at, there, x = _biased(hidden, bias, first, rows, WIDTH, ROWS, COLUMNS)
        slope = 0.5 * (1.0 + tl.erf(x * _ROOT_HALF)) + x * tl.exp(-0.5 * x * x) / _ROOT_TWO_PI
        of_hidden = tl.load(grad + at, mask=there, other=0.0).to(tl.float32) * slope
        tl.store(grad_hidden + at, of_hidden.to(grad_hidden.dtype.element_ty), mask=there)
        of_bias += tl.sum(of_hidden, 0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    tl.store(sums + program * WIDTH + column, of_bias, mask=column < WIDTH)
