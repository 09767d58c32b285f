"""AdamW as one kernel, in Triton's interpreter or on a GPU: the clipped steps of torch, and none that is not finite."""

import math

import pytest
import torch

from sst2.distributed.strategies.clipping import clipped_step

triton = pytest.importorskip("triton", reason="triton exists for Linux only")

from sst2.kernels.adamw import SIZE, Group, adamw  # noqa: E402 - it imports triton

pytestmark = pytest.mark.skipif(
    not (triton.knobs.runtime.interpret or torch.cuda.is_available()), reason="there is neither interpreter nor GPU"
)
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
COUNT = 2 * SIZE + 300
ENDS = 700, 1500, 2000


@pytest.mark.parametrize("max_norm", [1.0, 0.0])
def test_steps_are_torchs(max_norm: float) -> None:
    places = torch.arange(COUNT, device=DEVICE)
    is_first = (places < ENDS[0]) | ((places >= ENDS[1]) & (places < ENDS[2]))
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(COUNT, generator=generator).to(DEVICE)
    stock = [weights[part].clone().requires_grad_() for part in (is_first, ~is_first)]
    groups = [{"params": [stock[0]], "weight_decay": 0.1}, {"params": [stock[1]], "weight_decay": 0.0, "lr": 2e-2}]
    optimizer = torch.optim.AdamW(groups, 1e-2, fused=True)
    moments = torch.zeros(2, COUNT, device=DEVICE)
    rounded = torch.zeros(ENDS[1], dtype=torch.float16, device=DEVICE)
    taken = 0
    for exponent in (-2, 0, 3, math.nan, -1, 1):
        gradient = torch.randn(COUNT, generator=generator).to(DEVICE) * 10.0**exponent
        taken += not math.isnan(exponent)
        for weight, part in zip(stock, (is_first, ~is_first), strict=True):
            weight.grad = gradient[part].clone()
        norm = clipped_step(optimizer, max_norm)
        before, own = weights.clone(), gradient.clone()
        adamw(
            *(weights, *moments, gradient, rounded),
            groups=(Group(torch.tensor(1e-2, device=DEVICE), 0.1), Group(torch.tensor(2e-2, device=DEVICE), 0.0)),
            ends=ENDS,
            step=torch.tensor(float(taken), device=DEVICE),
            norm=norm,
            max_norm=max_norm,
            betas=(0.9, 0.999),
            eps=1e-8,
        )
        assert torch.equal(weights, before) == math.isnan(exponent)
        torch.testing.assert_close(gradient, own, rtol=0, atol=0, equal_nan=True)
        for weight, part in zip(stock, (is_first, ~is_first), strict=True):
            torch.testing.assert_close(weights[part], weight.detach(), rtol=1e-5, atol=1e-6)
        assert torch.equal(rounded, weights[: ENDS[1]].half())
    assert taken == 5


def test_nothing_is_rounded_without_a_place_for_it() -> None:
    weights, moments = torch.ones(10, device=DEVICE), torch.zeros(2, 10, device=DEVICE)
    number = torch.ones((), device=DEVICE)
    group = Group(0.1 * number, 0.0)
    adamw(
        *(weights, *moments, torch.ones_like(weights), None),
        groups=(group, group),
        ends=(10, 10, 10),
        step=number,
        norm=number,
        max_norm=0.0,
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    torch.testing.assert_close(weights, torch.full_like(weights, 0.9))
    torch.testing.assert_close(moments[0], torch.full_like(weights, 0.1))
