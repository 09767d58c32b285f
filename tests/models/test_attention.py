"""Attention in grids against its definition, sentence by sentence; FlashAttention's turn is in tests/gpu."""

import math

import numpy as np
import pytest
import torch

from sst2.data.packing import Pack
from sst2.models.attention import attend, flash_works

HEADS, WIDTH = 2, 8


def inputs(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(tokens, HEADS, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    )
    return query, key, value


def by_definition(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack) -> torch.Tensor:
    """softmax(Q K^T / sqrt(width)) V, for each sentence and head alone."""
    mixed = []
    sentences = zip(*(tensor.split(pack.lengths.tolist()) for tensor in (query, key, value)), strict=True)
    for own_query, own_key, own_value in sentences:
        scores = torch.einsum("qhw,khw->hqk", own_query, own_key) / math.sqrt(WIDTH)
        mixed.append(torch.einsum("hqk,khw->qhw", scores.softmax(-1), own_value))
    return torch.cat(mixed)


LENGTHS = [[5, 3, 8], [1], [9] * 20, list(range(1, 40)), [300, 1, 2]]


@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: f"{len(lengths)}-{max(lengths)}")
@pytest.mark.parametrize("spare", [0, 7])
def test_grids_give_what_the_definition_gives(lengths: list[int], spare: int) -> None:
    pack = Pack.of(np.array(lengths))
    tokens = inputs(pack.num_tokens + spare)
    found = attend(*tokens, pack, 0.0, 1 / math.sqrt(WIDTH))
    query, key, value = (tensor[: pack.num_tokens] for tensor in tokens)
    expected = by_definition(query, key, value, pack)
    torch.testing.assert_close(found[: pack.num_tokens], expected)
    assert not found[pack.num_tokens :].any()  # tokens of no sentence take nothing
    weights = torch.randn_like(found)
    mine = torch.autograd.grad((found * weights).sum(), tokens)
    theirs = torch.autograd.grad((expected * weights[: pack.num_tokens]).sum(), tokens)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("probability", [0.0, 1e-9], ids=["no dropout", "dropout"])
@pytest.mark.parametrize("trains", [True, False])
def test_sixteen_bits_are_rounded_and_no_more(trains: bool, probability: float) -> None:
    pack = Pack.of(np.array([5, 3, 8, 60, 1]))
    exact = inputs(pack.num_tokens)
    query, key, value = rounded = [tensor.detach().bfloat16().requires_grad_(trains) for tensor in exact]
    found = attend(query, key, value, pack, probability, 1 / math.sqrt(WIDTH))
    expected = by_definition(*exact, pack)
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02)
    if trains:
        mine = torch.autograd.grad(found.float().square().sum(), rounded)
        theirs = torch.autograd.grad(expected.square().sum(), exact)
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: f"{len(lengths)}-{max(lengths)}")
def test_one_query_for_each_sentence(lengths: list[int]) -> None:
    pack = Pack.of(np.array(lengths))
    query, key, value = inputs(pack.num_tokens)
    found = attend(query[pack.cls_indices], key, value, pack, 0.0, 1 / math.sqrt(WIDTH))
    torch.testing.assert_close(found, by_definition(query, key, value, pack)[pack.cls_indices])


def test_dropout_keeps_the_mean_and_drops_weights_not_values() -> None:
    pack = Pack.of(np.array([6, 4]))
    query, key, value = (tensor.detach().float() for tensor in inputs(pack.num_tokens))
    torch.manual_seed(0)
    draws = torch.stack([attend(query, key, value, pack, 0.25, 1 / math.sqrt(WIDTH)) for _ in range(4000)])
    assert len(draws.unique(dim=0)) > 3900
    expected = by_definition(query, key, value, pack)
    torch.testing.assert_close(draws.mean(0), expected, rtol=0, atol=0.1)
    # with values of 1, what is left is the sum of the weights: some value of its own for each token and head
    sums = attend(query, key, torch.ones_like(value), pack, 0.25, 1 / math.sqrt(WIDTH))
    torch.testing.assert_close(sums, sums[..., :1].expand_as(sums))
    assert sums[..., 0].std() > 0.05


def test_a_cpu_has_no_flash_attention() -> None:
    assert not flash_works(torch.device("cpu"), torch.bfloat16, 64)
