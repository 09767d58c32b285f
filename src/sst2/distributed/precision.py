"""The precision of a run: what the device can do, and whether bf16 is faster on this CPU."""

import os
import time
from typing import cast

import torch

from sst2.config.flag_groups import Precision
from sst2.config.launcher import launched_by
from sst2.distributed.devices import computes_on_cpu, cpu_info
from sst2.utils.errors import UserError


def choose_precision(requested: Precision | None) -> tuple[Precision, str]:
    """The autocast precision and the reason for it, in words.

    Args:
        requested: `no`, `fp16`, `bf16`, `auto`, or None to follow the launcher (ACCELERATE_MIXED_PRECISION).

    Raises:
        UserError: a precision that the device cannot do.
    """
    on_cuda = torch.cuda.is_available() and not computes_on_cpu()
    if requested == "auto":
        if on_cuda:
            if torch.cuda.get_device_capability() >= (8, 0):
                return "bf16", "the GPU has bf16 matrix units"
            return "fp16", "the GPU has no bf16 matrix units"
        if not computes_on_cpu() or not _cpu_has_bf16():
            return "no", "the device has no fast 16-bit arithmetic"
        gain = bf16_gain()
        return "bf16" if gain >= BF16_MIN_GAIN else "no", f"the CPU is {gain:.1f} times as fast in bf16, measured"
    exported = os.environ.get("ACCELERATE_MIXED_PRECISION")
    precision = cast(Precision, requested or exported or "no")
    if precision not in ("no", "bf16", "fp16"):
        raise UserError(f"the launcher asks for {precision}: give --mixed_precision bf16, fp16, no or auto")
    if precision == "fp16" and not on_cuda:
        raise UserError("--mixed_precision fp16 needs a GPU: give bf16, no or auto")
    if precision == "bf16" and on_cuda and torch.cuda.get_device_capability() < (8, 0):
        name = torch.cuda.get_device_name()
        raise UserError(f"--mixed_precision bf16: {name} has no bf16 matrix units: give fp16, no or auto")
    if requested:
        return precision, "set by --mixed_precision"
    by_launcher = launched_by() != "python"
    unasked = "set by ACCELERATE_MIXED_PRECISION" if exported else "the default without a launcher"
    return precision, "set by the launcher" if by_launcher else unasked


def _cpu_has_bf16() -> bool:
    """Whether there are instructions for bf16 products. oneDNN emulates them elsewhere, which gains nothing."""
    features = cpu_info("flags") + " " + cpu_info("Features")  # as x86 and Arm call them
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(features.split())


BF16_SHAPES = ((448, 768, 3072), (448, 3072, 768), (448, 768, 768))  # of DistilBERT-base at batch 32, packed


BF16_MIN_GAIN = 1.5  # at which bf16 is taken: casting weights and gradients costs some of it


def bf16_gain(seconds: float = 0.05) -> float:
    """How many times as fast as float32 this CPU multiplies the matrices of a training step in bf16.

    Instructions alone do not tell: some CPUs have them and are slower.

    Args:
        seconds: to measure each of the two for.
    """
    rates = {dtype: _products_per_second(dtype, seconds) for dtype in (torch.float32, torch.bfloat16)}
    return rates[torch.bfloat16] / rates[torch.float32]


def _products_per_second(dtype: torch.dtype, seconds: float) -> float:
    generator = torch.Generator().manual_seed(0)  # the random state of training stays what it is
    pairs = [
        (torch.randn(m, k, generator=generator).to(dtype), torch.randn(n, k, generator=generator).to(dtype))
        for m, k, n in BF16_SHAPES
    ]

    def once() -> None:
        for left, right in pairs:
            torch.nn.functional.linear(left, right)

    once()  # which prepares what later ones use
    count, started = 0, time.perf_counter()
    while count < 2 or time.perf_counter() - started < seconds:
        once()
        count += 1
    return count / (time.perf_counter() - started)
