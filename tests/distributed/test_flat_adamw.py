"""AdamW by one kernel behind the stock optimizer, in Triton's interpreter: its state, and a kernel that is wrong."""

import copy
from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from sst2.config.settings import Settings
from sst2.distributed.strategies import flat_adamw, prepare
from sst2.distributed.strategies.flat import FlatStrategy
from sst2.models.packed_classifier import PackedClassifier
from sst2.models.trial import pack_classifier
from sst2.training.optimizer import build_optimizer
from tests.support.architectures import classifier_of

triton = pytest.importorskip("triton", reason="triton exists for Linux only")
pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="where there is a GPU, kernels are compiled for it: tests/gpu"
)


@pytest.fixture(params=["no", "bf16"])
def accelerator(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Accelerator]:
    from sst2.kernels import adamw

    monkeypatch.setattr(adamw, "SIZE", 1 << 16)  # the interpreter takes 5 ms for each program, whatever its size
    yield Accelerator(cpu=True, mixed_precision=request.param)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def strategy_of(accelerator: Accelerator, name: str, kernels: bool) -> FlatStrategy:
    model: PackedClassifier = pack_classifier(classifier_of(name))
    optimizer = build_optimizer(model, Settings(smoke=True, model_name_or_path="sample", dataset_name="sample"))
    made = prepare(accelerator, model, optimizer, flat=True, kernels=kernels)
    assert isinstance(made, FlatStrategy)
    return made


def take_step(strategy: FlatStrategy, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    loss = sum((weight * torch.randn(weight.shape, generator=generator)).sum() for weight in strategy._leaves())
    assert isinstance(loss, torch.Tensor)
    strategy.backward(loss)
    return strategy.clip_and_step(1.0)


def assert_alike(one: FlatStrategy, other: FlatStrategy) -> None:
    for name, weight in one.weights().items():
        torch.testing.assert_close(weight, other.weights()[name], rtol=1e-5, atol=1e-6, msg=name)
    for leaf, own in zip(one._leaves(), other._leaves(), strict=True):  # the interpreter cuts where others round
        torch.testing.assert_close(leaf, own, rtol=torch.finfo(leaf.dtype).eps, atol=1e-6)


@pytest.mark.parametrize("name", ["distilbert", "albert"])  # of ALBERT, the blocks stay as they are
def test_steps_and_states_are_those_of_the_stock_optimizer(name: str, accelerator: Accelerator) -> None:
    kernel, stock = (strategy_of(accelerator, name, kernels) for kernels in (True, False))
    assert (kernel.steps_by_kernel, stock.steps_by_kernel) == (True, False)
    assert (kernel.blocks_by_kernel, stock.blocks_by_kernel) == (name == "distilbert", False)
    for seed in range(3):
        torch.testing.assert_close(take_step(kernel, seed), take_step(stock, seed))
    assert_alike(kernel, stock)
    states = kernel.training_state()["optimizer"], stock.training_state()["optimizer"]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for index, state in states[1]["state"].items():
        assert states[0]["state"][index].keys() == state.keys()
        for part, value in state.items():
            torch.testing.assert_close(states[0]["state"][index][part], value, rtol=1e-5, atol=1e-7)


def test_each_goes_on_from_the_others_state(accelerator: Accelerator) -> None:
    kernel, stock = (strategy_of(accelerator, "distilbert", kernels) for kernels in (True, False))
    for begun, goes_on in ((kernel, stock), (stock, kernel)):
        take_step(begun, 5)
        goes_on.load_weights(begun.weights())
        goes_on.load_training_state(copy.deepcopy(begun.training_state()))  # as from a file
        for seed in (6, 7):
            take_step(begun, seed)
            take_step(goes_on, seed)
        assert_alike(begun, goes_on)


def test_a_kernel_that_is_wrong_is_not_used(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = flat_adamw.FlatAdamW.step
    monkeypatch.setattr(flat_adamw.FlatAdamW, "step", lambda self, max_norm: right(self, 2 * max_norm))
    strategy = strategy_of(accelerator, "distilbert", kernels=True)
    assert not strategy.steps_by_kernel
    assert "--kernels triton is wrong here: AdamW is torch's" in caplog.text
    take_step(strategy, 0)
