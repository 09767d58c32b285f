"""Padding to few shapes: what a loss looks at stays what it was, and all shapes of a run are known before it."""

import numpy as np
import pytest
import torch

from sst2.data.batch_plan import BatchPlan, micro_batch_indices, split_by_tokens
from sst2.data.collation import Batch, collate
from sst2.data.splits import Split
from sst2.training.steps.buckets import IGNORED, Buckets


def split_of(lengths: np.ndarray) -> Split:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    labels = np.arange(len(lengths)) % 2
    return Split(name="train", sentences=[""] * len(lengths), labels=labels, input_ids=ids, offsets=offsets)


def batch_of(*lengths: int) -> Batch:
    return collate(split_of(np.array(lengths)), np.arange(len(lengths)), 0, "packed")


@pytest.mark.parametrize("lengths", [(3,), (60, 3, 17), (40, 40, 40, 40), (1, 1, 1, 1)])
def test_a_padded_batch_begins_with_the_batch_and_goes_on_with_nothing(lengths: tuple[int, ...]) -> None:
    buckets = Buckets(sentences=4, multiple=128, longest=66)
    batch = batch_of(*lengths)
    padded = buckets.pad(batch)
    pack = padded.inputs["pack"]
    assert padded.size == buckets.tokens(len(lengths), sum(lengths)) == pack.num_tokens
    assert padded.size % 128 == 0
    assert len(pack) == len(padded.labels) == buckets.slots == 6
    assert pack.lengths[: len(lengths)].tolist() == list(lengths)
    assert pack.lengths.min() >= 1
    assert pack.lengths.max() <= pack.max_seqlen == 66
    for name in ("input_ids", "position_ids"):
        assert padded.inputs[name][: batch.size].tolist() == batch.inputs[name].tolist()
        assert not padded.inputs[name][batch.size :].any()
    assert padded.labels[: len(lengths)].tolist() == batch.labels.tolist()
    assert set(padded.labels[len(lengths) :].tolist()) == {IGNORED}


@pytest.mark.parametrize(("world_size", "micro"), [(1, 50), (2, 25), (3, 4), (4, 13)])
def test_every_shape_that_comes_is_planned(world_size: int, micro: int) -> None:
    lengths = np.random.default_rng(0).integers(3, 67, 1030)
    split = split_of(lengths)
    plan = BatchPlan(len(lengths), 50, seed=0, total_steps=60)
    buckets = Buckets.of(micro, lengths)
    for rank in range(world_size):
        planned = buckets.planned(plan, lengths, rank, world_size)
        assert planned == sorted(planned, reverse=True)
        met = set()
        for step in range(plan.total_steps):
            indices = plan.indices(step)
            for own, _ in micro_batch_indices(split_by_tokens(indices, lengths[indices], world_size), rank, micro):
                met.add(buckets.pad(collate(split, own, 0, "packed")).size)
        assert met == set(planned)


def test_a_long_run_is_looked_at_here_and_there() -> None:
    lengths = np.random.default_rng(0).integers(3, 67, 200)
    plan = BatchPlan(len(lengths), 8, seed=0, total_steps=10**9)
    sizes = Buckets.of(8, lengths).planned(plan, lengths, 0, 1)
    assert sizes
    assert all(isinstance(size, int) for size in sizes)
    assert torch.iinfo(torch.int64).max > max(sizes)
