"""Blocks with kernels between their products, in Triton's interpreter: the stock model's logits and gradients."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from sst2.data.collation import collate
from sst2.models.attention import TRITON_ATTENTION
from sst2.models.fused_blocks import fuse_blocks
from sst2.models.packed_classifier import PackedClassifier
from sst2.models.trial import pack_classifier
from tests.models.test_architectures import CLASSES, gradients, split_of
from tests.support.architectures import PACKED, WHOLE_LAST_LAYER, classifier_of

triton = pytest.importorskip("triton", reason="triton exists for Linux only")
pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="where there is a GPU, kernels are compiled for it: tests/gpu"
)
KNOWN = sorted(set(PACKED) - WHOLE_LAST_LAYER)


@pytest.fixture(autouse=True)
def large_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes 5 ms for each, whatever its size."""
    from sst2.kernels import block

    monkeypatch.setattr(block, "NORM_ROWS", 16)
    monkeypatch.setattr(block, "ROWS", 16)
    monkeypatch.setattr(block, "COLUMNS", 64)


def packed(name: str, **changes: Any) -> tuple[Any, PackedClassifier]:
    """A stock classifier, and its double that takes packed batches."""
    stock = classifier_of(name, num_labels=CLASSES, **changes)
    return stock, pack_classifier(copy.deepcopy(stock))


def fuse(model: PackedClassifier) -> bool:
    return fuse_blocks(model, lambda weight: weight, torch.float32)


@pytest.mark.parametrize(
    ("name", "changes"), [*((name, {}) for name in KNOWN), ("distilbert", {"activation": "relu"})], ids=str
)
def test_they_have_the_padded_logits_and_gradients(name: str, changes: dict[str, Any]) -> None:
    """With attention by its kernel as well, whose heads have a width of 16 at least."""
    stock, ours = packed(name, **{"dim" if name == "distilbert" else "hidden_size": 64}, **changes)
    ours.config._attn_implementation = TRITON_ATTENTION
    assert fuse(ours)
    lengths = [13, 3, 40, 1]
    split, rows, pad = split_of(lengths, stock.config.vocab_size), np.arange(len(lengths)), stock.config.pad_token_id
    expected, expected_gradients = gradients(stock, collate(split, rows, pad, "padded"))
    for batching in ("packed", "padded"):
        found, found_gradients = gradients(ours, collate(split, rows, pad, batching))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
        assert found_gradients.keys() == expected_gradients.keys()
        for weight, gradient in expected_gradients.items():
            torch.testing.assert_close(found_gradients[weight], gradient, rtol=1e-3, atol=1e-5 * largest, msg=weight)


@pytest.mark.parametrize("name", ["distilbert", "bert"])
def test_dropout_is_drawn_in_training_alone(name: str) -> None:
    probabilities = {"dropout": 0.5, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    if name != "distilbert":
        probabilities = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    _, ours = packed(name, **probabilities)
    assert fuse(ours)
    ours.train().base_model.embeddings.eval()
    batch = collate(split_of([5, 9], ours.config.vocab_size), np.arange(2), ours.config.pad_token_id, "packed")

    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        logits: torch.Tensor = ours(**batch.inputs).logits.detach()
        return logits

    assert torch.equal(logits(0), logits(0))
    assert not torch.equal(logits(0), logits(1))
    ours.eval()
    assert torch.equal(logits(0), logits(1))


@pytest.mark.parametrize("name", sorted(WHOLE_LAST_LAYER))
def test_blocks_that_are_not_known_stay_as_they_are(name: str, caplog: pytest.LogCaptureFixture) -> None:
    _, ours = packed(name)
    assert not fuse(ours)
    assert "--kernels triton does not know the blocks of" in caplog.text
    assert not any("forward" in vars(module) for module in ours.base_model.modules())


@pytest.mark.parametrize("name", ["distilbert", "bert"])
@pytest.mark.parametrize("said", ["is wrong here", "does not work here (no such instruction)"])
def test_kernels_that_are_wrong_are_not_used(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sst2.kernels import block

    right = block.add_norm

    def wrong(*args: Any) -> torch.Tensor:
        if "not work" in said:
            raise RuntimeError("no such instruction")
        return 1.001 * right(*args)

    monkeypatch.setattr(block, "add_norm", wrong)
    stock, ours = packed(name)
    assert not fuse(ours)
    assert f"--kernels triton {said}" in caplog.text
    monkeypatch.undo()
    batch = collate(split_of([5, 9], stock.config.vocab_size), np.arange(2), stock.config.pad_token_id, "packed")
    found, expected = ours(**batch.inputs).logits, pack_classifier(stock)(**batch.inputs).logits
    assert torch.equal(found, expected)


def test_without_a_gpu_or_the_interpreter_there_are_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert not fuse(packed("distilbert")[1])
    assert "--kernels triton needs a GPU: torch's small operations remain" in caplog.text
