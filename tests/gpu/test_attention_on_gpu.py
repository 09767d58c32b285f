"""FlashAttention, and the kernels for short sentences, over packed sentences on a GPU."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sst2.data.packing import Pack
from sst2.models.attention import by_flash, by_triton, flash_works, in_grids, triton_works
from tests.gpu.test_cuda_graphs_on_gpu import losses, trainer_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

WIDTH = 64
SCALING = 1 / math.sqrt(WIDTH)


def inputs(pack: Pack, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value."""
    torch.manual_seed(0)
    shape = (pack.num_tokens, 12, WIDTH)
    query, key, value = (torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3))
    return query, key, value


BOTH = pytest.mark.parametrize(("way", "works"), [(by_flash, flash_works), (by_triton, triton_works)])
Way = Callable[..., torch.Tensor]


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "lengths",
    [[13, 3, 40, 7], [1], [512], [512, 1, 511, 2], [1] * 9, list(range(1, 129))],
    ids=lambda lengths: f"{len(lengths)}-{max(lengths)}",
)
@pytest.mark.parametrize(
    ("one_each", "window"), [(False, None), (True, None), (False, 8)], ids=["all queries", "first queries", "a window"]
)
def test_it_gives_what_grids_give(
    lengths: list[int], dtype: torch.dtype, one_each: bool, window: int | None, way: Way, works: Callable[..., bool]
) -> None:
    assert works(torch.device("cuda"), dtype, WIDTH, is_windowed=window is not None)
    pack = Pack.of(np.array(lengths)).to(torch.device("cuda"))
    query, key, value = tensors = inputs(pack, dtype)
    found = []
    for attention in (way, in_grids):
        queries = query[pack.cls_indices] if one_each else query
        mixed = attention(queries, key, value, pack, 0.0, SCALING, window)
        found.append([mixed, *torch.autograd.grad(mixed.float().square().sum(), tensors)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.02)


@BOTH
def test_dropout_is_drawn_and_keeps_the_mean(way: Way, works: Callable[..., bool]) -> None:
    pack = Pack.of(np.array([60, 40])).to(torch.device("cuda"))
    query, key, value = (tensor.detach() for tensor in inputs(pack, torch.bfloat16))
    assert works(torch.device("cuda"), torch.bfloat16, WIDTH)
    draws = torch.stack([way(query, key, value, pack, 0.2, SCALING).float() for _ in range(2000)])
    assert not torch.equal(draws[0], draws[1])
    torch.testing.assert_close(draws.mean(0), way(query, key, value, pack, 0.0, SCALING).float(), rtol=0, atol=0.05)


@pytest.mark.parametrize("implementation", ["auto", "triton"])
def test_it_is_tried_within_a_block_that_is_computed_again(implementation: str, tmp_path: Path) -> None:
    """The trial's own tensors are none of those that gradient checkpointing counts."""
    flash_works.cache_clear()
    triton_works.cache_clear()
    flags = ["--gradient_checkpointing", "--max_train_steps", 2, "--kernels", implementation]
    with trainer_of(tmp_path / "run", *flags) as trainer:
        assert np.isfinite(losses(trainer, 2)).all()


def test_gradients_of_the_kernels_for_short_sentences_are_the_same_each_time() -> None:
    pack = Pack.of(np.array([60, 40, *range(1, 40)])).to(torch.device("cuda"))
    tensors = inputs(pack, torch.bfloat16)

    def run() -> tuple[torch.Tensor, ...]:
        torch.manual_seed(3)
        mixed = by_triton(*tensors, pack, 0.1, SCALING)
        return torch.autograd.grad(mixed.float().square().sum(), tensors)

    first = run()
    for _ in range(5):
        assert all(torch.equal(*pair) for pair in zip(first, run(), strict=True))
