"""Predictions on a GPU are those of the CPU."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from sst2.config.flag_groups import Precision
from sst2.data.sample import sample_sentences
from sst2.inference.predict.classifier import Classifier
from sst2.inference.predict.explain import Explainer
from sst2.models.loading import load_classifier

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

SENTENCES = [*sample_sentences("validation")[0][:300], "a gripping film " * 300]


def classifier(folder: Path, device: str, precision: Precision = "no") -> Classifier:
    return Classifier(*load_classifier("MODEL", str(folder)), torch.device(device), precision=precision)


@pytest.mark.parametrize(("precision", "tolerance"), [("no", 1e-4), ("bf16", 0.05)])
def test_a_gpu_gives_the_cpus_logits(
    precision: Precision, tolerance: float, tiny_classifier: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = classifier(tiny_classifier, "cpu").logits(SENTENCES)
    with caplog.at_level(logging.WARNING, logger="sst2"):
        found = classifier(tiny_classifier, "cuda", precision).logits(SENTENCES)
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    assert caplog.text == ""  # such as: FlashAttention does not work here


def test_explanations_are_the_same(tiny_classifier: Path) -> None:
    found = [
        [word.value for word in Explainer(classifier(tiny_classifier, device)).explain(SENTENCES[0], 1).words]
        for device in ("cpu", "cuda")
    ]
    assert found[1] == pytest.approx(found[0], abs=1e-3)
