"""Attention within each sentence of a packed batch: FlashAttention on GPUs in 16 bits, padded grids elsewhere.

Kernels for short sentences, written in Triton, take the place of both where they are asked for. All are exact: a token
sees the tokens of its own sentence, all of them and no other.
"""

import logging
import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch.nn import functional as F

from sst2.data.packing import Grid, Pack
from sst2.kernels import obstacle
from sst2.utils.errors import shortened

logger = logging.getLogger(__name__)

PACKED_ATTENTION = "sst2_packed"  # names among transformers' attention functions, of which a model's config has one
TRITON_ATTENTION = "sst2_packed_triton"
TOLERANCES = {torch.float32: 1e-4}  # between two ways to compute in a type, of values of size 1
TOLERANCE_IN_16_BITS = 0.02


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pack: Pack,
    probability: float,
    scaling: float,
    window: int | None = None,
    implementation: str = PACKED_ATTENTION,
) -> torch.Tensor:
    """What each query takes from the values of its own sentence (Vaswani et al., 2017, eq. 1).

    Args:
        query: (tokens, heads, width), or (sentences, heads, width) for one query in each sentence; so is the result.
        key: (tokens, heads, width). Tokens after those of the pack belong to no sentence, and take nothing.
        value: as `key`.
        pack: where the sentences lie.
        probability: of dropout on the attention weights; 0 in evaluation.
        scaling: factor of the scores.
        window: the farthest that a token sees, in tokens to each side; None for the whole sentence. Where it is given,
            there is a query for every token.
        implementation: `TRITON_ATTENTION` asks for the kernels for short sentences; where they do not work, a warning
            says why, and attention is as without.
    """
    kind = query.device, value.dtype, query.shape[-1], window is not None
    if implementation == TRITON_ATTENTION and triton_works(*kind):
        way = by_triton
    elif query.is_cuda and _in_16_bits(query) and flash_works(*kind):
        way = by_flash
    else:
        way = in_grids
    return way(query, key, value, pack, probability, scaling, window)


def in_grids(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pack: Pack,
    probability: float,
    scaling: float,
    window: int | None = None,
) -> torch.Tensor:
    """`attend` by padded batches of a few sentences each, which a packed batch has in order of length."""
    one_each = len(query) == len(pack)
    sizes = [len(grid.unpad_index) for grid in pack.grids]
    spare = [len(key) - pack.num_tokens]
    parts = (tensor.split(sizes + spare) for tensor in (key, value))
    queries = query.split([len(grid.is_token) for grid in pack.grids] if one_each else sizes + spare)
    mixed = []
    for grid, own, *pair in zip(pack.grids, queries, *parts, strict=False):
        keys, values = (pad_input(tensor, grid).transpose(1, 2) for tensor in pair)
        asked = (own[:, None] if one_each else pad_input(own, grid)).transpose(1, 2)
        got = _attend_padded(asked, keys, values, _keys_in_sight(grid, window), probability, scaling).transpose(1, 2)
        mixed.append(got.flatten(0, 1) if one_each else unpad_input(got, grid))
    if not one_each:
        mixed.append(torch.zeros_like(queries[-1]))
    return torch.cat(mixed)


def by_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pack: Pack,
    probability: float,
    scaling: float,
    window: int | None = None,
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
        *(query, key, value, query_starts, starts, longest_query, longest, probability, False, False),
        scale=scaling,
        window_size_left=window,
        window_size_right=window,
    )
    return mixed


def by_triton(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pack: Pack,
    probability: float,
    scaling: float,
    window: int | None = None,
) -> torch.Tensor:
    """`attend` by `sst2.kernels.attention`, which imports triton: torch for GPUs comes with it, others do not.

    Rotary positions leave query and key in float32 under autocast (EuroBERT); a kernel takes one type, the value's.
    """
    from sst2.kernels.attention import short_attention

    query, key = query.to(value.dtype), key.to(value.dtype)
    return short_attention(query, key, value, pack, probability, scaling, window)


@lru_cache
def flash_works(device: torch.device, dtype: torch.dtype, head_dim: int, is_windowed: bool = False) -> bool:
    """Whether FlashAttention gives on this device what grids give; found out once, by trying, forward and backward."""
    why_not = _difference(by_flash, device, dtype, head_dim, is_windowed)
    if why_not:
        logger.warning("FlashAttention %s: attention runs in padded grids", why_not)
    return not why_not


@lru_cache
def triton_works(device: torch.device, dtype: torch.dtype, head_dim: int, is_windowed: bool = False) -> bool:
    """The same of the kernels for short sentences."""
    why_not = obstacle(device)
    if not why_not:
        from sst2.kernels.attention import WIDTHS

        if head_dim in WIDTHS:
            why_not = _difference(by_triton, device, dtype, head_dim, is_windowed)
        else:
            why_not = f"needs heads of width {', '.join(map(str, WIDTHS))}, and these have {head_dim}"
    if why_not:
        logger.warning("--kernels triton %s: attention runs without it", why_not)
    return not why_not


def _difference(
    way: Callable[..., torch.Tensor], device: torch.device, dtype: torch.dtype, head_dim: int, is_windowed: bool
) -> str:
    """What a way to attend does on this device that grids do not, forward or backward; nothing if it is right."""
    pack = Pack.of(torch.tensor([3, 9, 1, 20, 40]).numpy()).to(device)
    generator = torch.Generator().manual_seed(0)  # the random state of training stays what it is
    inputs = torch.randn((3, pack.num_tokens, 2, head_dim), generator=generator).to(device, dtype)

    def run(attention: Callable[..., torch.Tensor], probability: float) -> list[torch.Tensor]:
        own = inputs.clone().requires_grad_()
        tried = [(own[0], 4)] if is_windowed else [(own[0], None), (own[0][pack.cls_indices], None)]
        outputs = [
            attention(query, own[1], own[2], pack, probability, head_dim**-0.5, window) for query, window in tried
        ]
        gradients = torch.autograd.grad([output.float().square().sum() for output in outputs], own)
        return [tensor.detach().float() for tensor in (*outputs, *gradients)]

    try:
        # The first to ask may be an evaluation, or a block whose saved tensors are counted for gradient checkpointing.
        saved_as_they_are = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
        random_state = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with torch.enable_grad(), random_state, saved_as_they_are:
            by_both, dropped = zip(run(way, 0.0), run(in_grids, 0.0), strict=True), run(way, 0.1)
    except Exception as error:  # whatever a library says on a machine that it was not made for
        return f"does not work here ({shortened(str(error))})"
    tolerance = TOLERANCES.get(dtype, TOLERANCE_IN_16_BITS)
    is_close = all(torch.allclose(*both, rtol=tolerance, atol=tolerance) for both in by_both)
    return "" if is_close and all(tensor.isfinite().all() for tensor in dropped) else "is wrong here"


def mean_of_sentences(values: torch.Tensor, pack: Pack) -> torch.Tensor:
    """The mean over each sentence's tokens, (sentences, width), of (tokens, width); those after the pack are left out.

    It looks at no length on the host, so that a CUDA graph may hold it.
    """
    tokens = torch.arange(len(values), dtype=torch.int32, device=values.device)
    sentence = torch.searchsorted(pack.cu_seqlens[1:], tokens, right=True)
    dtype = torch.promote_types(values.dtype, torch.float32)
    sums = values.new_zeros((len(pack) + 1, values.shape[1]), dtype=dtype).index_add(0, sentence, values.to(dtype))
    return (sums[:-1] / pack.cu_seqlens.diff()[:, None]).to(values.dtype)


def _keys_in_sight(grid: Grid, window: int | None) -> torch.Tensor:
    """(sentences, 1, 1, places) bool, the tokens; with a window shorter than the grid, as each place sees them."""
    is_key, places = grid.is_token[:, None, None], grid.is_token.shape[1]
    if window is None or places <= window + 1:
        return is_key
    place = torch.arange(places, device=is_key.device)
    distance = (place[:, None] - place).abs()
    # A place of padding far from all tokens sees itself: softmax over nothing is not a number, nor is its gradient.
    return is_key & (distance <= window) | (distance == 0)


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
    """(sentences, heads, places, width) each, of queries one place or all; `is_key` is (sentences, 1, any, places)."""
    # On a CPU in 16 bits, the backward pass of torch's fused kernel takes two to six times as long as that of the steps
    # below; where there is dropout, torch takes steps of its own, which need up to a third longer.
    if query.device.type != "cpu" or not (query.requires_grad and _in_16_bits(query)):
        return F.scaled_dot_product_attention(query, key, value, is_key, probability, scale=scaling)
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    scores = scores.masked_fill(~is_key, -math.inf)
    weights = F.dropout(torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype), probability)
    return torch.matmul(weights, value)


def pad_input(tensor: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Copy tokens, (tokens, ...), to their places in a grid, (sentences, longest, ...), which is 0 elsewhere.

    Here and back again, gradients are copied as well. Indexing by token would add them up, element by element, since it
    cannot know that each token has one place.
    """
    rest = tensor.shape[1:]
    places = tensor.new_zeros((grid.is_token.numel(), *rest)).index_copy(0, grid.unpad_index, tensor)
    return places.view(*grid.is_token.shape, *rest)


def unpad_input(places: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Copy the tokens of a grid out of their places: the inverse."""
    return places.flatten(0, 1).index_select(0, grid.unpad_index)
