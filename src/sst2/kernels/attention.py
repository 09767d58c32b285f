"""Attention within short sentences as Triton kernels: one program for each sentence and head.

FlashAttention works on tiles of 128 tokens, and most sentences have fewer than 32. A program here takes blocks of 32
keys and loops over them in the few sentences that are longer: exact for any length. There are no atomics, so that a
step has the same gradients each time. Softmax is kept as in FlashAttention 2 (Dao, 2023): its base-2 logarithm of each
row's denominator is all that the backward pass needs.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from sst2.data.packing import Pack
from sst2.kernels import dropout

WIDTHS = (16, 32, 64, 128)  # of a head
BLOCK = 32  # keys, and queries where each token has one
FEWEST_QUERIES = 16  # of a block, where each sentence has one: a matrix product takes no fewer
LONGEST = 65536  # tokens of a sentence, for whose keys a head has random numbers of its own: more than encoders take

_LOG2_E = tl.constexpr(1.4426950408889634)
_GROUPS = tl.constexpr(LONGEST // 8)  # eight keys share a call of Philox


def short_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pack: Pack,
    probability: float,
    scaling: float,
    window: int | None = None,
) -> torch.Tensor:
    """`sst2.models.attention.attend`, whose arguments and result these are; heads have one of `WIDTHS`."""
    one_each = len(query) == len(pack)
    starts = pack.cu_seqlens
    query_starts = torch.arange(len(pack) + 1, dtype=torch.int32, device=query.device) if one_each else starts
    seed, threshold = dropout.drawn(probability, query.device)
    mixed: torch.Tensor = _ShortAttention.apply(
        query,
        key,
        value,
        query_starts,
        starts,
        pack.num_tokens,
        starts if seed is None else seed,  # which nobody reads then
        threshold,
        scaling,
        -1 if window is None else window,
    )
    return mixed


class _ShortAttention(torch.autograd.Function):
    """Of query, key and value, (tokens, heads, width); see `short_attention`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        query_starts: torch.Tensor,
        starts: torch.Tensor,
        num_tokens: int,
        seed: torch.Tensor,
        threshold: int,
        scaling: float,
        window: int,
    ) -> torch.Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        queries, heads, width = query.shape
        new = torch.empty_like if len(key) == num_tokens else torch.zeros_like  # tokens of no sentence take nothing
        mixed = new(query)
        lse = torch.empty((heads, queries), dtype=torch.float32, device=query.device)
        ctx.options = {
            "HEADS": heads,
            "WIDTH": width,
            "THRESHOLD": threshold,
            "WINDOW": window,
            "QUERIES": BLOCK if queries == len(key) else FEWEST_QUERIES,
            "KEYS": BLOCK,
            "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
        }
        ctx.scaling, ctx.new = scaling, new
        grid = (len(starts) - 1, heads)
        _forward[grid](query, key, value, query_starts, starts, mixed, lse, seed, scaling, queries, **ctx.options)
        ctx.save_for_backward(query, key, value, query_starts, starts, mixed, lse, seed)
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        query, key, value, query_starts, starts, mixed, lse, seed = ctx.saved_tensors
        gradients = [ctx.new(tensor) for tensor in (query, key, value)]
        grid = (len(starts) - 1, query.shape[1])
        _backward[grid](
            *(query, key, value, query_starts, starts, mixed, lse, grad.contiguous(), *gradients, seed),
            *(ctx.scaling, len(query)),
            **ctx.options,
        )
        return *gradients, None, None, None, None, None, None, None


@triton.jit
def _places(start, first, count, head, HEADS: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    """Numbers of SIZE tokens from the `first` in a sentence, whether they are there, and where their heads lie."""
    number = first + tl.arange(0, SIZE)
    columns = head * WIDTH + tl.arange(0, WIDTH)
    at = (start + number).to(tl.int64)[:, None] * (HEADS * WIDTH) + columns[None, :]
    return number, (number < count)[:, None], at


@triton.jit
def _in_sight(i, j, num_queries, num_keys, WINDOW: tl.constexpr):
    """(queries, keys) bool: both are there, and near enough."""
    seen = (i < num_queries)[:, None] & (j < num_keys)[None, :]
    if WINDOW >= 0:
        apart = i[:, None] - j[None, :]
        seen = seen & (apart <= WINDOW) & (apart >= -WINDOW)
    return seen


@triton.jit
def _forward(
    query,
    key,
    value,
    query_starts,
    starts,
    mixed,
    lse,
    seeds,
    scaling,
    queries,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    THRESHOLD: tl.constexpr,
    WINDOW: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    sentence = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest begin: batches are in order of length
    head = tl.program_id(1)
    first, start = tl.load(query_starts + sentence), tl.load(starts + sentence)
    num_queries = tl.load(query_starts + sentence + 1) - first
    num_keys = tl.load(starts + sentence + 1) - start
    seed = tl.load(seeds)
    for first_query in range(0, num_queries, QUERIES):
        i, is_i, at_i = _places(first, first_query, num_queries, head, HEADS, WIDTH, QUERIES)
        q = tl.load(query + at_i, mask=is_i, other=0.0)
        highest = tl.full((QUERIES,), float("-inf"), tl.float32)
        total = tl.zeros((QUERIES,), tl.float32)
        sums = tl.zeros((QUERIES, WIDTH), tl.float32)
        for first_key in range(0, num_keys, KEYS):
            j, is_j, at_j = _places(start, first_key, num_keys, head, HEADS, WIDTH, KEYS)
            k = tl.load(key + at_j, mask=is_j, other=0.0)
            v = tl.load(value + at_j, mask=is_j, other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scaling * _LOG2_E)
            scores = tl.where(_in_sight(i, j, num_queries, num_keys, WINDOW), scores, float("-inf"))
            new = tl.maximum(highest, tl.max(scores, 1))
            base = tl.where(new == float("-inf"), 0.0, new)  # of rows that have seen no key so far
            shrink = tl.exp2(highest - base)
            weights = tl.exp2(scores - base[:, None])
            total = total * shrink + tl.sum(weights, 1)
            if THRESHOLD > 0:
                keep = dropout.keep(seed, first + i, head * _GROUPS + first_key // 8, THRESHOLD, QUERIES, KEYS)
                weights = tl.where(keep, weights * (65536.0 / (65536 - THRESHOLD)), 0.0)
            sums = sums * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
            highest = new
        total = tl.where(i < num_queries, total, 1.0)
        tl.store(mixed + at_i, (sums / total[:, None]).to(mixed.dtype.element_ty), mask=is_i)
        tl.store(lse + head * queries + first + i, highest + tl.log2(total), mask=i < num_queries)


@triton.jit
def _of_scores(q, k, v, grad, own, own_lse, seen, keep, scaling, THRESHOLD: tl.constexpr, PRECISION: tl.constexpr):
    """Weights after dropout, and gradients of scores, (QUERIES, KEYS) float32 each."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scaling * _LOG2_E)
    weights = tl.where(seen, tl.exp2(scores - own_lse[:, None]), 0.0)
    delta = tl.sum(grad.to(tl.float32) * own.to(tl.float32), 1)
    of_weights = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    dropped = weights
    if THRESHOLD > 0:
        dropped = tl.where(keep, weights * (65536.0 / (65536 - THRESHOLD)), 0.0)
        of_weights = tl.where(keep, of_weights * (65536.0 / (65536 - THRESHOLD)), 0.0)
    return dropped, weights * (of_weights - delta[:, None]) * scaling


@triton.jit
def _backward(
    query,
    key,
    value,
    query_starts,
    starts,
    mixed,
    lse,
    grad_mixed,
    grad_query,
    grad_key,
    grad_value,
    seeds,
    scaling,
    queries,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    THRESHOLD: tl.constexpr,
    WINDOW: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    sentence = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    first, start = tl.load(query_starts + sentence), tl.load(starts + sentence)
    num_queries = tl.load(query_starts + sentence + 1) - first
    num_keys = tl.load(starts + sentence + 1) - start
    seed = tl.load(seeds)
    for first_key in range(0, num_keys, KEYS):
        j, is_j, at_j = _places(start, first_key, num_keys, head, HEADS, WIDTH, KEYS)
        k = tl.load(key + at_j, mask=is_j, other=0.0)
        v = tl.load(value + at_j, mask=is_j, other=0.0)
        grad_k = tl.zeros((KEYS, WIDTH), tl.float32)
        grad_v = tl.zeros((KEYS, WIDTH), tl.float32)
        for first_query in range(0, num_queries, QUERIES):
            i, is_i, at_i = _places(first, first_query, num_queries, head, HEADS, WIDTH, QUERIES)
            q = tl.load(query + at_i, mask=is_i, other=0.0)
            grad = tl.load(grad_mixed + at_i, mask=is_i, other=0.0)
            own = tl.load(mixed + at_i, mask=is_i, other=0.0)
            own_lse = tl.load(lse + head * queries + first + i, mask=i < num_queries, other=0.0)
            seen = _in_sight(i, j, num_queries, num_keys, WINDOW)
            keep = seen
            if THRESHOLD > 0:
                keep = dropout.keep(seed, first + i, head * _GROUPS + first_key // 8, THRESHOLD, QUERIES, KEYS)
            dropped, of_scores = _of_scores(q, k, v, grad, own, own_lse, seen, keep, scaling, THRESHOLD, PRECISION)
            of_scores = of_scores.to(q.dtype)
            grad_v += tl.dot(tl.trans(dropped.to(q.dtype)), grad, input_precision=PRECISION)
            grad_k += tl.dot(tl.trans(of_scores), q, input_precision=PRECISION)
            if num_keys <= KEYS:
                of_query = tl.dot(of_scores, k, input_precision=PRECISION)
                tl.store(grad_query + at_i, of_query.to(q.dtype), mask=is_i)
        tl.store(grad_key + at_j, grad_k.to(k.dtype), mask=is_j)
        tl.store(grad_value + at_j, grad_v.to(v.dtype), mask=is_j)
    if num_keys > KEYS:  # a query's gradient is a sum over blocks of keys: once more, the other way round
        for first_query in range(0, num_queries, QUERIES):
            i, is_i, at_i = _places(first, first_query, num_queries, head, HEADS, WIDTH, QUERIES)
            q = tl.load(query + at_i, mask=is_i, other=0.0)
            grad = tl.load(grad_mixed + at_i, mask=is_i, other=0.0)
            own = tl.load(mixed + at_i, mask=is_i, other=0.0)
            own_lse = tl.load(lse + head * queries + first + i, mask=i < num_queries, other=0.0)
            grad_q = tl.zeros((QUERIES, WIDTH), tl.float32)
            for first_key in range(0, num_keys, KEYS):
                j, is_j, at_j = _places(start, first_key, num_keys, head, HEADS, WIDTH, KEYS)
                k = tl.load(key + at_j, mask=is_j, other=0.0)
                v = tl.load(value + at_j, mask=is_j, other=0.0)
                seen = _in_sight(i, j, num_queries, num_keys, WINDOW)
                keep = seen
                if THRESHOLD > 0:
                    keep = dropout.keep(seed, first + i, head * _GROUPS + first_key // 8, THRESHOLD, QUERIES, KEYS)
                _, of_scores = _of_scores(q, k, v, grad, own, own_lse, seen, keep, scaling, THRESHOLD, PRECISION)
                grad_q += tl.dot(of_scores.to(q.dtype), k, input_precision=PRECISION)
            tl.store(grad_query + at_i, grad_q.to(q.dtype), mask=is_i)
