"""One buffer for all that a step reads: it holds what `Buckets.pad` makes, and numbers to their last float32 bit."""

import numpy as np
import pytest
import torch

from sst2.data.collation import Batch, collate
from sst2.data.splits import Split
from sst2.training.steps.buckets import IGNORED, Buckets
from sst2.training.steps.inputs import StepInputs

CPU = torch.device("cpu")
BUCKETS = Buckets(sentences=5, multiple=64, longest=66)


@pytest.fixture
def train() -> Split:
    lengths = np.random.default_rng(0).integers(1, 67, 40)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = (np.arange(40) % 3).astype(np.int16)
    ids = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    return Split(name="train", sentences=[""] * 40, labels=labels, input_ids=ids, offsets=offsets)


@pytest.fixture
def inputs(train: Split) -> StepInputs:
    return StepInputs(train, BUCKETS, most_tokens=384, num_rates=2, device=CPU)


def write(inputs: StepInputs, indices: np.ndarray, ignore: bool = False) -> int:
    """Write and send; returns the tokens, padding included."""
    tokens = inputs.tokens(indices)
    inputs.write(indices, tokens, ignore)
    inputs.send()
    return tokens


def assert_same(one: Batch, two: Batch) -> None:
    for name in ("input_ids", "position_ids"):
        assert one.inputs[name].tolist() == two.inputs[name].tolist()
    assert one.labels.tolist() == two.labels.tolist()
    packs = one.inputs["pack"], two.inputs["pack"]
    assert packs[0].cu_seqlens.tolist() == packs[1].cu_seqlens.tolist()
    assert packs[0].lengths.tolist() == packs[1].lengths.tolist()
    assert packs[0].max_seqlen == packs[1].max_seqlen


def test_it_holds_the_padded_batch(train: Split, inputs: StepInputs) -> None:
    for seed in range(30):
        generator = np.random.default_rng(seed)
        indices = generator.permutation(40)[: generator.integers(1, 6)]
        tokens = write(inputs, indices)
        expected = BUCKETS.pad(collate(train, indices, 0, "packed"))
        assert tokens == expected.size
        assert_same(inputs.batch(tokens), expected)


def test_no_loss_looks_at_a_micro_batch_that_only_fills_up(inputs: StepInputs) -> None:
    tokens = write(inputs, np.array([3, 4]), ignore=True)
    assert set(inputs.batch(tokens).labels.tolist()) == {IGNORED}


def test_a_filler_has_the_shape_of_a_batch(inputs: StepInputs) -> None:
    tokens = write(inputs, np.array([3, 4, 5]))
    batch = inputs.batch(tokens)
    shapes = [(tensor.shape, tensor.dtype) for tensor in batch.tensors()]
    inputs.write_filler(tokens)
    inputs.send()
    filler = inputs.batch(tokens)
    assert [(tensor.shape, tensor.dtype) for tensor in filler.tensors()] == shapes
    assert set(filler.labels.tolist()) == {IGNORED}
    assert filler.inputs["pack"].num_tokens == tokens
    assert filler.inputs["pack"].lengths.min() >= 1
    assert filler.inputs["pack"].lengths.max() <= filler.inputs["pack"].max_seqlen


def test_numbers_stay_where_they_are_and_what_they_are(inputs: StepInputs) -> None:
    numbers = [31.25, 4.0, 2e-5, 1e-30]
    places = [tensor.data_ptr() for tensor in (inputs.divisor, inputs.loss_weight, *inputs.rates)]
    inputs.write_numbers(numbers)
    for indices in ([1], [2, 3]):  # of two micro-batches of a step, which have the same
        write(inputs, np.array(indices))
        found = [inputs.divisor, inputs.loss_weight, *inputs.rates]
        assert [float(tensor) for tensor in found] == [float(np.float32(number)) for number in numbers]
        assert [tensor.data_ptr() for tensor in found] == places
