"""The small operations of a block as kernels, in Triton's interpreter or on a GPU: the numbers of torch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

triton = pytest.importorskip("triton", reason="triton exists for Linux only")

from sst2.kernels import block  # noqa: E402 - it imports triton
from sst2.kernels.block import COLUMNS, ROWS, add_norm, bias_gelu  # noqa: E402

pytestmark = pytest.mark.skipif(
    not (triton.knobs.runtime.interpret or torch.cuda.is_available()), reason="there is neither interpreter nor GPU"
)
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
SHAPES = [(1, 16), (7, 48), (ROWS + 1, COLUMNS + 4)]


@pytest.fixture(autouse=True, params=[1, 4])
def few_programs(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """So that a few rows give each of them more than one."""
    monkeypatch.setattr(block, "PROGRAMS", 3)
    monkeypatch.setattr(block, "NORM_ROWS", request.param)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE).requires_grad_()


def norm_of(width: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(width, eps=1e-5, device=DEVICE)
    with torch.no_grad():
        norm.weight.copy_(drawn(width, seed=3))
        norm.bias.copy_(drawn(width, seed=4))
    return norm


def with_gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = drawn(*output.shape, seed=9).detach()
    return [output.detach(), *torch.autograd.grad((output.float() * weights).sum(), inputs)]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        largest = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_add_norm_is_torchs_dropout_sum_and_norm(rows: int, width: int) -> None:
    hidden, residual, bias, norm = drawn(1, rows, width), drawn(1, rows, width, seed=1), drawn(width), norm_of(width)
    inputs = [hidden, residual, bias, norm.weight, norm.bias]
    found = with_gradients(add_norm(hidden, bias, residual, norm, 0.0), inputs)
    assert_close(found, with_gradients(norm(residual + (hidden + bias)), inputs))


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_bias_gelu_is_torchs(rows: int, width: int) -> None:
    hidden, bias = drawn(1, rows, width), drawn(width)
    found = with_gradients(bias_gelu(hidden, bias), [hidden, bias])
    assert_close(found, with_gradients(F.gelu(hidden + bias), [hidden, bias]))


def test_products_in_16_bits_may_meet_a_residual_in_32() -> None:
    """As in the first block, whose residual is the norm of the embeddings."""
    norm, width = norm_of(32), 32
    hidden, bias = drawn(5, width).half().detach().requires_grad_(), drawn(width).half().detach().requires_grad_()
    residual = drawn(5, width, seed=1)
    inputs = [hidden, bias, residual, norm.weight]
    found = with_gradients(add_norm(hidden, bias, residual, norm, 0.0), inputs)
    assert_close(found, with_gradients(norm(residual + hidden + bias).half(), inputs), 2e-3)


def test_the_backward_pass_drops_what_the_forward_pass_has_dropped() -> None:
    """With a residual of 0 and a norm that is nearly none, zeros of the output tell what was dropped."""
    rows, width, probability = 40, 128, 0.25
    hidden, bias = drawn(rows, width), torch.full((width,), 10.0, device=DEVICE, requires_grad=True)
    norm, residual = nn.LayerNorm(width, device=DEVICE), torch.zeros(rows, width, device=DEVICE)
    torch.manual_seed(0)
    # The mean of a row is known from what is kept: the lowest values are those of dropped elements.
    output = add_norm(hidden, bias, residual, norm, probability)
    is_kept = output.detach() > output.detach().amin(1, keepdim=True) + 1e-3
    share = float(is_kept.float().mean())
    assert abs(share - (1 - probability)) < 0.025  # four standard errors
    expected = norm(torch.where(is_kept, (hidden + bias) / (1 - probability), 0.0))
    inputs = [hidden, bias, norm.weight]
    assert_close(with_gradients(output, inputs), with_gradients(expected, inputs), 1e-4)
    torch.manual_seed(0)
    assert torch.equal(add_norm(hidden, bias, residual, norm, probability), output)
    assert not torch.equal(add_norm(hidden, bias, residual, norm, probability), output)


def test_masks_of_rows_and_columns_have_nothing_in_common() -> None:
    hidden, norm = torch.full((60, 128), 10.0, device=DEVICE), nn.LayerNorm(128, device=DEVICE)
    output = add_norm(hidden, torch.zeros_like(hidden[0]), torch.zeros_like(hidden), norm, 0.5)
    is_kept = (output > 0).float()
    assert 0.45 < float(is_kept.mean()) < 0.55
    for other in (is_kept.roll(1, 0), is_kept.roll(1, 1), is_kept.roll(8, 1)):
        assert abs(float((is_kept == other).float().mean()) - 0.5) < 0.03


def test_where_nothing_is_dropped_nothing_is_drawn() -> None:
    state = torch.cuda.get_rng_state if DEVICE == "cuda" else torch.get_rng_state
    before = state()
    add_norm(drawn(3, 16), drawn(16), drawn(3, 16), norm_of(16), 0.0)
    assert torch.equal(state(), before)
