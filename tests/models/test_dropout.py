"""Dropout of 16 bits: how often, how large, how independent."""

import numpy as np
import pytest
import torch

from sst2.models.dropout import Dropout, dropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9, 1e-4])
def test_as_often_as_asked_and_with_the_same_mean(probability: float) -> None:
    torch.manual_seed(0)
    values = torch.ones(1000, 1000)
    dropped = dropout(values, probability)
    share = float((dropped == 0).float().mean())
    assert share == pytest.approx(probability, abs=5 * np.sqrt(probability * (1 - probability) / 1e6) + 2**-17)
    (scale,) = dropped[dropped != 0].unique().tolist()
    assert scale == pytest.approx(1 / (1 - round(probability * 2**16) / 2**16))


def test_elements_are_independent_of_their_neighbors() -> None:
    """Four share one draw of 64 bits."""
    torch.manual_seed(0)
    is_dropped = (dropout(torch.ones(400_000), 0.3) == 0).double()
    for distance in (1, 2, 3, 4, 5, 8):
        pairs = torch.stack([is_dropped[:-distance], is_dropped[distance:]])
        assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.01, distance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_dropped_has_no_gradient_and_the_rest_its_scale(dtype: torch.dtype) -> None:
    values = torch.randn(37, 5, dtype=dtype, requires_grad=True)
    dropped = dropout(values, 0.4)
    assert dropped.dtype == dtype
    dropped.sum().backward()
    expected = torch.where(dropped == 0, 0.0, 1 / 0.6)
    torch.testing.assert_close(values.grad.float(), expected, rtol=0.01, atol=0)  # type: ignore[union-attr]


def test_the_random_state_decides_and_nothing_is_drawn_in_an_evaluation() -> None:
    layer, values = Dropout(0.5), torch.ones(100)
    draws = []
    for _ in range(2):
        torch.manual_seed(1)
        draws.append(layer(values))
    assert torch.equal(*draws)
    before = torch.get_rng_state()
    assert layer.eval()(values) is values
    assert Dropout(0.0)(values) is values
    assert torch.equal(torch.get_rng_state(), before)
