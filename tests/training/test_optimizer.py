"""What decays and how fast the optimizer learns, seen in what it does to the weights."""

from collections.abc import Iterator
from itertools import pairwise
from math import cos, pi
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn
from transformers import DistilBertForSequenceClassification

from sst2.config.flag_groups import TrainingArguments
from sst2.config.settings import Settings
from sst2.data.sample import sample_config
from sst2.distributed.strategies.clipping import clipped_step, global_norm
from sst2.training.optimizer import build_optimizer, build_schedule

SCHEDULES = get_args(get_type_hints(TrainingArguments)["lr_scheduler_type"])


def settings(kind: str = "linear") -> Settings:
    return Settings(
        output_dir="/nonexistent",
        lr_scheduler_type=kind,  # type: ignore[arg-type]
        learning_rate=0.1,
        weight_decay=0.5,
        num_warmup_steps=4,
        max_train_steps=10,
    )


@pytest.fixture(scope="module")
def model() -> DistilBertForSequenceClassification:
    return DistilBertForSequenceClassification(sample_config(50))


def test_matrices_decay_and_biases_and_layer_norms_do_not(model: DistilBertForSequenceClassification) -> None:
    optimizer = build_optimizer(model, settings())
    schedule = build_schedule(optimizer, settings())
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())  # each once
    for _ in range(4):
        optimizer.step()
        schedule.step()  # to the peak
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = {name: float(parameter.detach().max()) for name, parameter in model.named_parameters()}
    spared = {name for name, value in after.items() if value == 1.0}
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    assert len(norms) == 5
    assert spared == {f"{name}.weight" for name in norms} | {name for name in after if name.endswith(".bias")}
    decayed = {name: value for name, value in after.items() if name not in spared}
    assert decayed == pytest.approx(dict.fromkeys(decayed, 1 - 0.1 * 0.5))
    for name in ("embeddings.word_embeddings", "embeddings.position_embeddings", "transformer.layer.0.ffn.lin1"):
        assert f"distilbert.{name}.weight" in decayed


def rates(kind: str) -> Iterator[float]:
    """The share of the peak at which each of 10 steps and the one after them is done."""
    optimizer = build_optimizer(nn.Linear(2, 2), settings(kind))
    schedule = build_schedule(optimizer, settings(kind))
    for _ in range(11):
        yield float(schedule.get_last_lr()[0]) / 0.1
        optimizer.step()
        schedule.step()


def test_rates_by_their_formulas() -> None:
    rise = [0, 1 / 4, 2 / 4, 3 / 4]
    assert list(rates("linear")) == pytest.approx([*rise, *(1 - step / 6 for step in range(7))])
    assert list(rates("cosine")) == pytest.approx([*rise, *(0.5 + 0.5 * cos(pi * step / 6) for step in range(7))])
    assert list(rates("constant_with_warmup")) == pytest.approx([*rise, *(7 * [1])])
    assert list(rates("constant")) == 11 * [1]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_schedule_on_offer_can_be_built_and_peaks_at_the_learning_rate(kind: str) -> None:
    shares = list(rates(kind))
    assert max(shares) == pytest.approx(1)
    assert min(shares) >= 0
    assert kind == "constant" or shares[:4] == pytest.approx([0, 1 / 4, 2 / 4, 3 / 4])
    assert all(later <= earlier for earlier, later in pairwise(shares[4:]))


def two_alike() -> Iterator[tuple[nn.Linear, torch.optim.Optimizer]]:
    """Two models with the same weights and gradients, each with its AdamW."""
    for _ in range(2):
        torch.manual_seed(0)
        layer = nn.Linear(30, 20)
        for parameter in layer.parameters():
            parameter.grad = torch.randn_like(parameter)
        yield layer, build_optimizer(layer, settings())


@pytest.mark.parametrize("max_norm", [0.5, 1000.0, 0.0])
def test_a_clipped_step_is_torchs_clipping_and_step(max_norm: float) -> None:
    (mine, own), (theirs, stock) = two_alike()
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm or float("inf"))
    for _ in range(2):
        stock.step()
    assert float(clipped_step(own, max_norm)) == pytest.approx(float(expected), rel=1e-6)
    clipped_step(own, max_norm)  # now of the scaled gradients
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(broken: float) -> None:
    layer, optimizer = next(two_alike())
    clipped_step(optimizer, 1.0)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    moments = {id(p): {name: value.clone() for name, value in optimizer.state[p].items()} for p in layer.parameters()}
    layer.weight.grad[3, 4] = broken  # type: ignore[index]
    assert not clipped_step(optimizer, 1.0).isfinite()
    for parameter, old in zip(layer.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        for name, value in optimizer.state[parameter].items():
            assert torch.equal(value, moments[id(parameter)][name]), name


def test_the_norm_of_a_large_gradient_is_exact() -> None:
    tensors = [torch.randn(20_000_000) + 1, torch.randn(30, 40)]
    expected = torch.cat([tensor.double().flatten() for tensor in tensors]).norm()
    assert float(global_norm(tensors)) == pytest.approx(float(expected), rel=5e-6)  # torch's norm: 1e-3


def test_the_norm_of_nothing_is_zero() -> None:
    assert float(global_norm([])) == 0
