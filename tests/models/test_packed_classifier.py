"""A packed batch has the padded one's logits and gradients, for sentences of any length and in any number."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import DistilBertForSequenceClassification

from sst2.data.collation import Batch, collate, pack
from sst2.data.sample import sample_config
from sst2.data.splits import Split
from sst2.models.packed_classifier import PackedClassifier
from sst2.models.trial import pack_classifier
from sst2.training.steps.buckets import Buckets

VOCABULARY = 300


def split_of(lengths: list[int], seed: int = 0) -> Split:
    """Sentences of these numbers of tokens."""
    generator = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Split(
        name="train",
        sentences=[""] * len(lengths),
        labels=generator.integers(2, size=len(lengths)),
        input_ids=generator.integers(5, VOCABULARY, size=offsets[-1]).astype(np.int32),
        offsets=offsets,
    )


def models() -> tuple[DistilBertForSequenceClassification, PackedClassifier]:
    """Transformers' own and ours, with the same weights. Dropout is off, as in an evaluation."""
    torch.manual_seed(0)
    stock = DistilBertForSequenceClassification(sample_config(VOCABULARY))
    ours = pack_classifier(DistilBertForSequenceClassification(sample_config(VOCABULARY)))
    ours.load_state_dict(stock.state_dict())
    return stock.eval(), ours.eval()


def gradients(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradient of the mean loss by the weights' names."""
    model.zero_grad()
    logits = model(**batch.inputs).logits
    F.cross_entropy(logits, batch.labels).backward()
    return logits.detach(), {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize(
    "lengths",
    [
        [13, 3, 40, 7, 7, 22, 3],
        [1],
        [5],
        [512],
        [512, 1, 511, 2],
        [9] * 8,
        [3, 300],
        list(range(1, 65)),
    ],
    ids=lambda lengths: f"{len(lengths)} sentences of {min(lengths)} to {max(lengths)}",
)
def test_logits_and_gradients_are_those_of_transformers_on_a_padded_batch(lengths: list[int]) -> None:
    stock, ours = models()
    split, rows = split_of(lengths), np.arange(len(lengths))
    expected, expected_gradients = gradients(stock, collate(split, rows, 0, "padded"))
    found, found_gradients = gradients(ours, collate(split, rows, 0, "packed"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        # relative to the largest: k_lin.bias has a gradient of exactly 0, but for rounding
        scale = max(float(gradient.abs().max()), 1e-3)
        if max(lengths) == 1 and ("q_lin" in name or "k_lin" in name):  # so have both: differences of what values get
            values = expected_gradients[name.replace("q_lin", "v_lin").replace("k_lin", "v_lin")]
            scale = 0.1 * float(values.abs().max())
        torch.testing.assert_close(found_gradients[name], gradient, rtol=0, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("multiple", [64, 256])
@pytest.mark.parametrize("lengths", [[13, 3, 40, 7, 7, 22, 3], [60, 66, 1], [30, 34], [60, 66, 1, 1]], ids=str)
def test_fillers_change_neither_logits_nor_gradients(lengths: list[int], multiple: int) -> None:
    _, ours = models()
    batch = collate(split_of(lengths), np.arange(len(lengths)), 0, "packed")
    filled = Buckets(len(lengths), multiple, longest=66).pad(batch)
    fillers = filled.inputs["pack"].lengths[len(lengths) :]
    assert (filled.size % multiple, len(fillers)) == (0, multiple // 64)
    assert 1 <= fillers.min() <= fillers.max() <= filled.inputs["pack"].max_seqlen == 66
    (logits, found), (expected_logits, expected) = gradients(ours, filled), gradients(ours, batch)
    torch.testing.assert_close(logits[: len(lengths)], expected_logits)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_every_length_up_to_512() -> None:
    stock, ours = models()
    split = split_of(list(range(1, 513)))
    for rows in np.array_split(np.random.default_rng(0).permutation(512), 40):
        expected, _ = gradients(stock, collate(split, rows, 0, "padded"))
        found, _ = gradients(ours, collate(split, rows, 0, "packed"))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_padded_batch_is_taken_as_by_transformers_bit_for_bit() -> None:
    batch = collate(split_of([13, 3, 40]), np.arange(3), 0, "padded")
    found = [gradients(model, batch) for model in models()]
    (expected, expected_gradients), (logits, gradients_) = found
    assert torch.equal(logits, expected)
    for name, gradient in expected_gradients.items():
        assert torch.equal(gradients_[name], gradient), name


def test_no_sentence_sees_another() -> None:
    _, ours = models()
    split = split_of([13, 3, 40])
    alone = torch.cat([ours(**pack(split, np.array([row]))).logits for row in range(3)])
    together = ours(**pack(split, np.array([2, 0, 1]))).logits
    torch.testing.assert_close(together, alone[[2, 0, 1]], rtol=1e-5, atol=1e-6)


PLACES = ("dropout", "attention_dropout", "seq_classif_dropout")


@pytest.mark.parametrize(
    ("place", "layers"),
    # one layer is the last, of first tokens alone
    [*((place, 2) for place in PLACES), ("attention_dropout", 1)],
)
def test_dropout_is_drawn_everywhere_attention_included(place: str, layers: int) -> None:
    torch.manual_seed(0)
    batch = pack(split_of([13, 3, 40]), np.arange(3))
    config = sample_config(VOCABULARY)
    config.update(dict.fromkeys(PLACES, 0.0) | {place: 0.5, "n_layers": layers})
    model = pack_classifier(DistilBertForSequenceClassification(config)).train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)
    model.eval()
    assert torch.equal(model(**batch).logits, model(**batch).logits)
