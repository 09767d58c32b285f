"""The flat buffer on one process: gradients lie in it, and AdamW may be prepared without a step."""

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from sst2.distributed.strategies import prepare
from sst2.distributed.strategies.flat import FlatStrategy


@pytest.fixture
def strategy() -> Iterator[FlatStrategy]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, fused=True)
    made = prepare(Accelerator(cpu=True), model, optimizer, flat=True)
    assert isinstance(made, FlatStrategy)
    yield made
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def loss_of(strategy: FlatStrategy) -> torch.Tensor:
    loss: torch.Tensor = strategy.model(torch.arange(12.0).reshape(4, 3)).square().sum()
    return loss


def gradients(strategy: FlatStrategy) -> torch.Tensor:
    return strategy._gradients.clone()


def test_a_pass_writes_over_the_last_step_or_adds_to_zeros(strategy: FlatStrategy) -> None:
    strategy.backward(loss_of(strategy))
    once = gradients(strategy)
    strategy.backward(loss_of(strategy))
    torch.testing.assert_close(gradients(strategy), 2 * once)  # of the same step
    for zeros in (False, True):
        strategy.empty_gradients(zeros)
        strategy.backward(loss_of(strategy))
        torch.testing.assert_close(gradients(strategy), once)


def test_a_step_uses_the_gradients_up(strategy: FlatStrategy) -> None:
    expected = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss_of(strategy), strategy._trained)])
    strategy.backward(loss_of(strategy))
    norm = strategy.clip_and_step(0.0)
    assert float(norm) == pytest.approx(float(expected.norm()), rel=1e-6)
    assert all(weight.grad is None for weight in strategy.model.parameters())
    strategy.backward(0 * loss_of(strategy))
    assert not gradients(strategy).any()


def test_adamw_is_prepared_without_a_step(strategy: FlatStrategy) -> None:
    before = [weight.clone() for weight in strategy.model.parameters()]
    strategy.prepare_optimizer(lambda: strategy.clip_and_step(1.0))
    for weight, old in zip(strategy.model.parameters(), before, strict=True):
        assert torch.equal(weight, old)
        state = strategy.optimizer.state[weight]
        assert float(state["step"]) == 0
        assert not state["exp_avg"].any()
        assert not state["exp_avg_sq"].any()
    strategy.backward(0 * loss_of(strategy))
    assert not gradients(strategy).any()  # what it was prepared with is forgotten
