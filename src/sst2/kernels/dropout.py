"""Which elements dropout keeps: 16 bits of Philox (Salmon et al., 2011) for each, drawn again in the backward pass."""

import torch
import triton
import triton.language as tl

RANDOM_STEPS = 65536  # of 16 random bits; the probability of dropout is rounded to a multiple of 1 / RANDOM_STEPS


def drawn(probability: float, device: torch.device) -> tuple[torch.Tensor | None, int]:
    """A seed, (1,) int64, from torch's random state, also in a graph, and how many of `RANDOM_STEPS` are dropped.

    Where nothing is dropped nothing is drawn, and there is no seed.
    """
    threshold = min(round(probability * RANDOM_STEPS), RANDOM_STEPS - 1)
    return torch.randint(2**62, (1,), device=device) if threshold else None, threshold


@triton.jit
def keep(seed, rows, first_group, THRESHOLD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(ROWS, COLUMNS) bool, by the number of each row, (ROWS,) int32, and of eight columns that share a call."""
    groups = first_group + tl.arange(0, COLUMNS // 8)
    row, group = rows[:, None] + groups[None, :] * 0, rows[:, None] * 0 + groups[None, :]
    a, b, c, d = tl.philox(seed, row, group, row * 0, row * 0)
    words = tl.join(tl.join(a, b), tl.join(c, d))
    halves = tl.join(words & 0xFFFF, words >> 16).to(tl.int32)
    return tl.reshape(halves, (ROWS, COLUMNS)) >= THRESHOLD
