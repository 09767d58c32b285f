"""The sentences of a step depend on (seed, step, global batch size) alone, and each goes to one device."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sst2.config.settings import Settings
from sst2.data.batch_plan import BatchPlan, epoch_order, micro_batch_indices, plan_batches, split_by_tokens
from sst2.data.collation import collate, evaluation_loader
from sst2.data.splits import Split
from sst2.utils.errors import UserError


def make_split(lengths: list[int]) -> Split:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    return Split("train", ["x"] * len(lengths), np.arange(len(lengths)) % 2, ids, offsets)


def settings(**changes: Any) -> Settings:
    return replace(Settings(output_dir="/nonexistent"), **changes)


def test_an_epoch_visits_every_sentence_once_and_epochs_differ() -> None:
    plan = BatchPlan(num_sentences=103, global_batch_size=10, seed=1, total_steps=33)
    assert plan.steps_per_epoch == 11
    epochs = [np.concatenate([plan.indices(step) for step in range(11 * e, 11 * (e + 1))]) for e in range(3)]
    for rows in epochs:
        assert sorted(rows) == list(range(103))
    assert not np.array_equal(epochs[0], epochs[1])
    assert len(plan.indices(10)) == 3  # the short last step


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert np.array_equal(epoch_order(50, 1, 2), epoch_order(50, 1, 2))
    assert not np.array_equal(epoch_order(50, 1, 2), epoch_order(50, 2, 1))
    # pinned: a change would break the resume of every checkpoint out there
    assert epoch_order(8, 42, 0).tolist() == [3, 4, 2, 7, 6, 1, 5, 0]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 8, 100])
@pytest.mark.parametrize("count", [1, 2, 5, 32])
def test_every_sentence_of_a_step_is_dealt_once(world_size: int, micro_batch_size: int, count: int) -> None:
    lengths = np.random.default_rng(0).integers(3, 60, size=200)
    rows = np.random.default_rng(1).permutation(200)[:count]
    shards = split_by_tokens(rows, lengths[rows], world_size)
    passes = [micro_batch_indices(shards, rank, micro_batch_size) for rank in range(world_size)]
    assert len({len(own) for own in passes}) == 1  # as many forward passes on every rank
    batches = [batch for own in passes for batch in own]
    assert all(1 <= len(rows) <= micro_batch_size for rows, _ in batches)
    assert sorted(row for rows, weight in batches if weight == 1.0 for row in rows) == sorted(rows)
    assert {weight for _, weight in batches} <= {0.0, 1.0}


def test_devices_get_about_as_many_tokens() -> None:
    lengths = np.random.default_rng(0).geometric(1 / 12, size=10_000) + 2  # about as SST-2's
    for world_size in (2, 3, 8):
        imbalance = []
        for seed in range(50):
            rows = np.random.default_rng(seed).permutation(10_000)[: 32 * world_size]
            tokens = [int(lengths[shard].sum()) for shard in split_by_tokens(rows, lengths[rows], world_size)]
            imbalance.append(max(tokens) / np.mean(tokens) - 1)
        assert np.mean(imbalance) < 0.03
    # Where sentences do not go round, it is not the longest that some devices have more of.
    tokens = [int(lengths[shard].sum()) for shard in split_by_tokens(np.arange(100), lengths[:100], 3)]
    assert max(tokens) / np.mean(tokens) < 1.02


def test_padding_follows_the_sentences() -> None:
    batch = collate(make_split([3, 1, 4]), [2, 0], 0, "padded")
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 8], [1, 2, 3, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert (batch.labels.tolist(), batch.indices.tolist()) == ([0, 0], [2, 0])
    assert all(tensor.dtype == torch.int64 for tensor in [*batch.inputs.values(), batch.labels, batch.indices])


def test_packing_lays_sentences_end_to_end() -> None:
    batch = collate(make_split([3, 1, 4]), [2, 0], 0, "packed")
    assert batch.inputs["input_ids"].tolist() == [5, 6, 7, 8, 1, 2, 3]
    assert batch.inputs["position_ids"].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.inputs["pack"].cu_seqlens.tolist() == [0, 4, 7]
    assert (batch.labels.tolist(), batch.indices.tolist()) == ([0, 0], [2, 0])


def test_evaluation_loader_leaves_the_random_state_alone() -> None:
    loader = evaluation_loader(make_split([5, 2, 9, 3, 2]), 3, pad_token_id=0, batching="padded")
    before = torch.get_rng_state()
    rows = [row for batch in loader for row in batch.indices.tolist()]
    assert rows == [2, 0, 3, 1, 4]  # the longest first, so that memory fails at once
    assert torch.equal(before, torch.get_rng_state())


def test_global_batch_fixes_the_accumulation() -> None:
    resolved, plan = plan_batches(settings(global_batch_size=64, per_device_train_batch_size=8), 1000, world_size=2)
    assert (resolved.gradient_accumulation_steps, plan.global_batch_size) == (4, 64)
    resolved, plan = plan_batches(settings(gradient_accumulation_steps=4), 1000, world_size=2)
    assert (resolved.global_batch_size, plan.global_batch_size) == (256, 256)


def test_steps_and_warm_up_are_counted_in_optimizer_steps() -> None:
    resolved, plan = plan_batches(settings(), 67_349, world_size=1)
    assert (plan.total_steps, plan.steps_per_epoch, resolved.num_warmup_steps) == (6315, 2105, 379)
    resolved, plan = plan_batches(settings(max_train_steps=10, num_warmup_steps=0), 67_349, world_size=4)
    assert (plan.total_steps, resolved.num_warmup_steps, resolved.global_batch_size) == (10, 0, 128)


def test_contradicting_batch_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="takes 1 forward passes of 32 on 2 processes, not --gradient_accumulation"):
        plan_batches(settings(global_batch_size=64, gradient_accumulation_steps=4), 1000, world_size=2)
    with pytest.raises(
        UserError, match="leaves some of 4 processes without a sentence: start 1 to 3 processes, or give at least 4"
    ):
        plan_batches(settings(global_batch_size=3), 1000, world_size=4)
