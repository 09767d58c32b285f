"""Attention within each sentence of a packed batch: FlashAttention on GPUs in 16 bits, padded grids elsewhere.

Both are exact: a token sees the tokens of its own sentence, all of them and no other.
"""

import logging
import math
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional as F

from sst2.data.packing import Pack
from sst2.models.dropout import dropout

logger = logging.getLogger(__name__)

FLASH_TOLERANCE = 0.02  # between two ways to round to 16 bits, of values of size 1


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, probability: float, scaling: float
) -> torch.Tensor:
    """What each query takes from the values of its own sentence (Vaswani et al., 2017, eq. 1).

    Args:
        query: (tokens, heads, width), or (sentences, heads, width) for one query in each sentence.
        key: (tokens, heads, width). Tokens after those of the pack belong to no sentence, and take nothing.
        value: as `key`.
        pack: where the sentences lie.
        probability: of dropout on the attention weights; 0 in evaluation.
        scaling: factor of the scores.

    Returns:
        The shape of `query`.
    """
    if query.is_cuda and _in_16_bits(query) and flash_works(query.device, query.dtype, query.shape[-1]):
        return by_flash(query, key, value, pack, probability, scaling)
    return in_grids(query, key, value, pack, probability, scaling)


def in_grids(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, probability: float, scaling: float
) -> torch.Tensor:
    """`attend` by padded batches of a few sentences each, which a packed batch has in order of length."""
    one_each = len(query) == len(pack)
    sizes = [len(grid.unpad_index) for grid in pack.grids]
    spare = [len(key) - pack.num_tokens]
    parts = (tensor.split(sizes + spare) for tensor in (key, value))
    queries = query.split([len(grid.tokens) for grid in pack.grids] if one_each else sizes + spare)
    mixed = []
    for grid, own, *pair in zip(pack.grids, queries, *parts, strict=False):
        keys, values = (PadInput.apply(tensor, grid.tokens, grid.unpad_index).transpose(1, 2) for tensor in pair)
        asked = (own[:, None] if one_each else PadInput.apply(own, grid.tokens, grid.unpad_index)).transpose(1, 2)
        got = _attend_padded(asked, keys, values, grid.is_token[:, None, None], probability, scaling).transpose(1, 2)
        mixed.append(got.flatten(0, 1) if one_each else UnpadInput.apply(got, grid.unpad_index))
    if not one_each:
        mixed.append(torch.zeros_like(queries[-1]))
    return torch.cat(mixed)


def by_flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, probability: float, scaling: float
) -> torch.Tensor:
    """`attend` by FlashAttention over sequences of different lengths (Dao, 2023), dropout included.

    `torch.nn.attention.varlen` has no dropout; the operator beneath it does.
    """
    starts, longest = pack.cu_seqlens, pack.max_seqlen
    assert len(key) == pack.num_tokens  # the operator would leave the others as it finds them
    if len(query) == len(pack):
        query_starts = torch.arange(len(pack) + 1, dtype=torch.int32, device=query.device)
        longest_query = 1
    else:
        query_starts, longest_query = starts, longest
    mixed: torch.Tensor
    mixed, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, query_starts, starts, longest_query, longest, probability, False, False, scale=scaling
    )
    return mixed


@lru_cache
def flash_works(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether FlashAttention gives on this device what grids give; found out once, by trying, forward and backward."""
    pack = Pack.of(torch.tensor([3, 9, 1, 20]).numpy()).to(device)
    generator = torch.Generator().manual_seed(0)  # the random state of training stays what it is
    shape = (3, int(pack.lengths.sum()), 2, head_dim)
    inputs = torch.randn(shape, generator=generator).to(device, dtype)
    found: list[list[torch.Tensor]] = []
    try:
        with torch.enable_grad():  # the first to ask may be an evaluation
            for attention in (by_flash, in_grids):
                own = inputs.clone().requires_grad_()
                queries = own[0], own[0][pack.cls_indices]
                outputs = [attention(query, own[1], own[2], pack, 0.0, 1 / math.sqrt(head_dim)) for query in queries]
                (gradient,) = torch.autograd.grad([output.float().square().sum() for output in outputs], own)
                found.append([*outputs, gradient])
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                own = inputs.clone().requires_grad_()
                dropped = by_flash(own[0], own[1], own[2], pack, 0.1, 1 / math.sqrt(head_dim))
                (gradient,) = torch.autograd.grad(dropped.float().square().sum(), own)
                if not (dropped.isfinite().all() and gradient.isfinite().all()):
                    raise RuntimeError("its dropout gives numbers that are not finite")
    except (RuntimeError, TypeError) as error:
        logger.warning("FlashAttention does not work here (%s): attention runs in padded grids", error)
        return False
    for mine, theirs in zip(*found, strict=True):
        if not torch.allclose(mine.float(), theirs.float(), rtol=FLASH_TOLERANCE, atol=FLASH_TOLERANCE):
            logger.warning("FlashAttention is wrong here: attention runs in padded grids")
            return False
    return True


def _in_16_bits(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


def _attend_padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    is_key: torch.Tensor,
    probability: float,
    scaling: float,
) -> torch.Tensor:
    """(sentences, heads, places, width) each, of queries one place or all; `is_key` is (sentences, 1, 1, places)."""
    # On a CPU, torch computes the steps below itself where there is dropout, and draws 64 random bits for each weight;
    # where there is none, its fused kernel's backward pass takes two to six times as long as theirs in 16 bits.
    if query.device.type != "cpu" or not (probability or (query.requires_grad and _in_16_bits(query))):
        return F.scaled_dot_product_attention(query, key, value, is_key, probability, scale=scaling)
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    scores = scores.masked_fill(~is_key, -math.inf)
    weights = dropout(torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype), probability)
    return torch.matmul(weights, value)


class PadInput(torch.autograd.Function):
    """Tokens to the places of a grid. The gradient comes back by copying as well: each token has one place.

    Indexing alone would add up gradients, element by element, since it cannot know that.
    """

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, tokens: torch.Tensor, unpad_index: torch.Tensor) -> torch.Tensor:
        """Copy tokens to the places of a grid.

        Args:
            ctx: of autograd.
            tensor: (tokens, ...).
            tokens: (sentences, longest) int64, which token comes to each place.
            unpad_index: (tokens of the grid,) int64, the place of each token.

        Returns:
            (sentences, longest, ...).
        """
        ctx.save_for_backward(unpad_index)
        return tensor[tokens]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Copy the gradient back from the places of the tokens."""
        (unpad_index,) = ctx.saved_tensors
        return gradients[0].flatten(0, 1)[unpad_index], None, None


class UnpadInput(torch.autograd.Function):
    """Tokens back from the places of a grid, its inverse. Places without a token have no gradient."""

    @staticmethod
    def forward(ctx: Any, places: torch.Tensor, unpad_index: torch.Tensor) -> torch.Tensor:
        """Copy the tokens of a grid out of their places.

        Args:
            ctx: of autograd.
            places: (sentences, longest, ...).
            unpad_index: (tokens of the grid,) int64, the place of each token.

        Returns:
            (tokens of the grid, ...).
        """
        ctx.save_for_backward(unpad_index)
        ctx.shape = places.shape
        return places.flatten(0, 1)[unpad_index]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Copy the gradient to the places of the tokens; the others get 0."""
        (unpad_index,) = ctx.saved_tensors
        spread = gradients[0].new_zeros(ctx.shape)
        spread.flatten(0, 1)[unpad_index] = gradients[0]
        return spread, None
