"""Weights in bf16 beside their float32 masters: bit for bit what autocast computes, and a model that looks the same."""

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.nn import functional as F

from sst2.data.collation import Batch, collate
from sst2.distributed.strategies import prepare
from sst2.distributed.strategies.flat import FlatStrategy
from sst2.distributed.strategies.strategy import Strategy
from sst2.models.packed_classifier import PackedClassifier
from sst2.models.trial import pack_classifier
from tests.models.test_architectures import CLASSES, split_of
from tests.support.architectures import PACKED, classifier_of

Pair = tuple[FlatStrategy, Strategy]


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A model with such weights, and its double under autocast alone."""
    model = pack_classifier(classifier_of(getattr(request, "param", "distilbert"), num_labels=CLASSES)).train()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    strategies = [
        prepare(accelerator, own, torch.optim.AdamW(own.parameters(), 1e-2, fused=True), flat=flat)
        for own, flat in ((copy.deepcopy(model), True), (model, False))
    ]
    assert isinstance(strategies[0], FlatStrategy)
    yield strategies[0], strategies[1]
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def batch_of(strategy: Strategy, lengths: list[int]) -> Batch:
    config = model_of(strategy).config
    return collate(split_of(lengths, config.vocab_size), np.arange(len(lengths)), config.pad_token_id, "packed")


def model_of(strategy: Strategy) -> PackedClassifier:
    model = strategy._bare_model
    assert isinstance(model, PackedClassifier)
    return model


def logits_of(strategy: Strategy, batch: Batch) -> torch.Tensor:
    torch.manual_seed(0)  # of dropout
    logits: torch.Tensor = strategy.model(**batch.inputs).logits
    return logits


def take_step(strategy: Strategy) -> tuple[torch.Tensor, ...]:
    """Losses of two passes, the norm of the gradient, and the weights after it."""
    losses = []
    for lengths in ([13, 3, 40, 7], [5, 22]):
        batch = batch_of(strategy, lengths)
        losses.append(F.cross_entropy(logits_of(strategy, batch), batch.labels))
        strategy.backward(losses[-1])
    return *(loss.detach() for loss in losses), strategy.clip_and_step(1.0), *strategy.weights().values()


@pytest.mark.parametrize("pair", PACKED, indirect=True)
def test_steps_are_those_of_autocast_bit_for_bit(pair: Pair) -> None:
    for _ in range(3):
        for one, other in zip(*map(take_step, pair), strict=True):
            assert torch.equal(one, other)
    in_evaluation = []
    for strategy in pair:
        strategy.model.eval()
        with torch.no_grad():
            in_evaluation.append(logits_of(strategy, batch_of(strategy, [9, 30])))
    assert torch.equal(*in_evaluation)


def test_the_model_keeps_its_names_types_and_optimizer(pair: Pair) -> None:
    flat, plain = (strategy.weights() for strategy in pair)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in flat.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in plain.items()
    }
    in_groups = [weight for group in pair[0].optimizer.param_groups for weight in group["params"]]
    assert [id(weight) for weight in in_groups] == [id(weight) for weight in model_of(pair[0]).parameters()]


def test_weights_that_are_loaded_are_computed_with(pair: Pair) -> None:
    flat, plain = pair
    take_step(plain)
    flat.load_weights(plain.weights())
    batch = batch_of(plain, [4, 8])
    assert torch.equal(logits_of(flat, batch), logits_of(plain, batch))


def test_a_step_that_is_not_finite_leaves_them_alone(pair: Pair) -> None:
    flat, _ = pair
    batch = batch_of(flat, [4, 8])
    before = logits_of(flat, batch).detach()
    flat.backward(logits_of(flat, batch).sum() * float("nan"))
    assert not flat.clip_and_step(1.0).isfinite()
    assert torch.equal(logits_of(flat, batch), before)


def test_a_weight_that_is_used_beside_its_layer_is_found_out(pair: Pair) -> None:
    flat, _ = pair
    weight = flat._bare_model.get_parameter("classifier.weight")
    with pytest.raises(AssertionError, match="is used beside its forward"):
        flat.backward(logits_of(flat, batch_of(flat, [4, 8])).sum() + weight.sum())


def test_layers_with_a_rule_of_their_own_stay_as_they_are() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(Doubled(3, 3), nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, fused=True)
    flat = prepare(Accelerator(cpu=True, mixed_precision="bf16"), model, optimizer, flat=True)
    try:
        flat.backward(flat.model(torch.ones(1, 3)).sum())
        assert "forward" not in vars(model[0])
        assert "forward" in vars(model[1])
        assert float(flat.clip_and_step(0.0)) > 0
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
