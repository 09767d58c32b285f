"""What makes a CPU train at its speed: memory that is kept, no denormal numbers, 16 bits where they are faster."""

import ctypes
import time
from contextlib import suppress

import torch

BF16_SHAPES = ((448, 768, 3072), (448, 3072, 768), (448, 768, 768))  # of DistilBERT-base at batch 32, packed
BF16_MIN_GAIN = 1.5  # at which bf16 is taken: casting weights and gradients costs some of it

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of mallopt(3)
_KEPT_BYTES = 2**31 - 1  # its arguments are int


def tune_cpu() -> None:
    """For a process that trains on the CPU; to be called before the model is loaded."""
    keep_memory()
    torch.set_flush_denormal(True)  # AdamW's moments decay into them


def keep_memory() -> None:
    """Have the C library keep freed memory for the next allocation, as torch does on a GPU.

    By default large tensors are mapped afresh every time, and the kernel fills their pages with zeros: every step would
    touch the same gigabyte anew. C libraries other than glibc know nothing of it, and are left as they are.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - raises where it is not glibc
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_M_TOP_PAD, 64 << 20)


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
