"""Blocks with kernels between their products, in Triton's interpreter: the stock model's logits and gradients."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sst2.data.collation import collate
from sst2.models.attention import TRITON_ATTENTION
from sst2.models.fused_blocks import FusedBlocks
from sst2.models.packed_classifier import PackedClassifier
from sst2.models.trial import pack_classifier
from tests.models.test_architectures import CLASSES, gradients, split_of
from tests.support.architectures import PACKED, WHOLE_LAST_LAYER, classifier_of

triton = pytest.importorskip("triton", reason="triton exists for Linux only")

from sst2.kernels import block  # noqa: E402 - it imports triton

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="where there is a GPU, kernels are compiled for it: tests/gpu"
)
KNOWN = sorted(set(PACKED) - WHOLE_LAST_LAYER)


def counting(kernel: Callable[..., torch.Tensor], launched: Counter[str]) -> Callable[..., torch.Tensor]:
    def count(*args: Any) -> torch.Tensor:
        launched[kernel.__name__] += 1
        return kernel(*args)

    return count


@pytest.fixture(autouse=True)
def large_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes 5 ms for each, whatever its size."""
    monkeypatch.setattr(block, "NORM_ROWS", 16)
    monkeypatch.setattr(block, "ROWS", 16)
    monkeypatch.setattr(block, "COLUMNS", 64)


def packed(name: str, **changes: Any) -> tuple[Any, PackedClassifier]:
    """A stock classifier, and its double that takes packed batches."""
    stock = classifier_of(name, num_labels=CLASSES, **changes)
    return stock, pack_classifier(copy.deepcopy(stock))


def fuse(model: PackedClassifier) -> str:
    """Why it has no kernels; nothing if it has."""
    return FusedBlocks(model, lambda weight: weight, torch.float32).why_not


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("distilbert", {}),
        ("distilbert", {"activation": "relu"}),
        ("bert", {}),
        *(pytest.param(name, {}, marks=pytest.mark.slow) for name in KNOWN if name not in ("distilbert", "bert")),
    ],
    ids=str,
)
def test_they_have_the_padded_logits_and_gradients(
    name: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With attention by its kernel as well, whose heads have a width of 16 at least."""
    stock, ours = packed(name, **{"dim" if name == "distilbert" else "hidden_size": 64}, **changes)
    ours.config._attn_implementation = TRITON_ATTENTION
    assert not fuse(ours)
    launched = Counter[str]()
    for kernel in ("add_norm", "bias_gelu"):
        monkeypatch.setattr(block, kernel, counting(getattr(block, kernel), launched))
    lengths = [13, 3, 40, 1]
    split, rows, pad = split_of(lengths, stock.config.vocab_size), np.arange(len(lengths)), stock.config.pad_token_id
    expected, expected_gradients = gradients(stock, collate(split, rows, pad, "padded"))
    for batching in ("packed", "padded"):
        found, found_gradients = gradients(ours, collate(split, rows, pad, batching))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
        assert found_gradients.keys() == expected_gradients.keys()
        for weight, gradient in expected_gradients.items():
            torch.testing.assert_close(found_gradients[weight], gradient, rtol=1e-5, atol=1e-5 * largest, msg=weight)
    assert launched == Counter(add_norm=8, bias_gelu=0 if "activation" in changes else 4)  # in two blocks, twice


@pytest.mark.parametrize("name", ["distilbert", "bert"])
def test_dropout_is_drawn_in_training_alone(name: str) -> None:
    probabilities = {"dropout": 0.5, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    if name != "distilbert":
        probabilities = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    _, ours = packed(name, **probabilities)
    assert not fuse(ours)
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
def test_blocks_that_are_not_known_stay_as_they_are(name: str) -> None:
    _, ours = packed(name)
    assert fuse(ours).startswith("does not know the blocks of")
    assert not any("forward" in vars(module) for module in ours.base_model.modules())


@pytest.mark.parametrize("name", ["distilbert", "bert"])
@pytest.mark.parametrize("said", ["is wrong here", "does not work here (no such instruction)"])
@pytest.mark.parametrize("right_calls", [0, 3])  # none, and all of the first block
def test_kernels_that_are_wrong_are_not_used(
    name: str, said: str, right_calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, right = [0], block.add_norm

    def wrong(*args: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] <= right_calls:
            return right(*args)
        if "not work" in said:
            raise RuntimeError("no such instruction")
        return 1.001 * right(*args)

    stock, ours = packed(name)
    with monkeypatch.context() as patched:
        patched.setattr(block, "add_norm", wrong)
        assert fuse(ours) == said
    assert calls[0] > right_calls
    batch = collate(split_of([5, 9], stock.config.vocab_size), np.arange(2), stock.config.pad_token_id, "packed")
    found, expected = ours(**batch.inputs).logits, pack_classifier(stock)(**batch.inputs).logits
    assert torch.equal(found, expected)


def test_dropout_that_is_wrong_in_the_backward_pass_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = block._AddNorm.backward

    def undropped(ctx: Any, grad: torch.Tensor) -> Any:
        ctx.options = ctx.options | {"THRESHOLD": 0}
        return right(ctx, grad)

    monkeypatch.setattr(block._AddNorm, "backward", staticmethod(undropped))
    assert fuse(packed("distilbert")[1]) == "is wrong here"


def test_without_a_gpu_or_the_interpreter_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert fuse(packed("distilbert")[1]) == "needs a GPU"
