"""Linear layers by oneDNN: the same numbers, for packed batches in float32 without gradients, and only if faster."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sst2.config.flag_groups import Precision
from sst2.data.sample import sample_sentences
from sst2.inference.predict import linear
from sst2.inference.predict.classifier import Classifier
from sst2.models.loading import load_classifier
from sst2.models.packed_classifier import CPU_TOKENS

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
LINEARS_IN_A_BLOCK = 6


@pytest.fixture
def rows_by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each call, in their order, where oneDNN is the faster library."""
    monkeypatch.setattr(linear, "onednn_gain", lambda: 2.0)
    rows, compute = [], linear.by_onednn

    def watched(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows.append(values.shape[-2])
        return compute(values, weight, bias)

    monkeypatch.setattr(linear, "by_onednn", watched)
    return rows


def classifier(folder: Path, precision: Precision = "no") -> Classifier:
    return Classifier(*load_classifier("MODEL", str(folder)), torch.device("cpu"), precision=precision)


def test_logits_are_the_same_whoever_multiplies(
    rows_by_onednn: list[int], tiny_classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentences = sample_sentences("validation")[0][:201]
    found = classifier(tiny_classifier).logits(sentences)
    assert rows_by_onednn
    assert not any(rows % CPU_TOKENS for rows in rows_by_onednn)  # few different ones
    calls = len(rows_by_onednn)
    monkeypatch.setattr(linear, "onednn_gain", lambda: linear.MIN_GAIN - 0.01)
    expected = classifier(tiny_classifier).logits(sentences)
    assert len(rows_by_onednn) == calls
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # of logits up to 5


def test_every_layer_but_those_of_first_tokens_is_by_onednn(rows_by_onednn: list[int], tiny_classifier: Path) -> None:
    whole = classifier(tiny_classifier)
    whole.logits(["a gripping , funny film"])
    blocks = whole.model.config.n_layers
    assert rows_by_onednn == [CPU_TOKENS] * (LINEARS_IN_A_BLOCK * (blocks - 1) + len(("keys", "values")))


def test_gradients_and_16_bits_are_torchs_own(rows_by_onednn: list[int], tiny_classifier: Path) -> None:
    layer = torch.nn.Linear(8, 8)
    linear.use_faster_linear(layer)
    layer(torch.ones(CPU_TOKENS, 8)).sum().backward()
    assert layer.weight.grad is not None
    classifier(tiny_classifier, "bf16").logits(["fine"] * 100)
    assert rows_by_onednn == []


def test_the_gain_is_measured_and_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    assert 0.01 < linear.onednn_gain() < 100
    assert torch.equal(torch.get_rng_state(), before)
