"""The loss is torch's own, with weights of classes and label smoothing, however its sentences are divided."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from sst2.config.settings import Settings
from sst2.data.collation import collate
from sst2.data.splits import Split
from sst2.training.loss import TrainingLoss, class_weights
from sst2.training.steps.buckets import Buckets

NAMES = ["a", "b", "c"]
LABELS = np.array([0, 0, 0, 0, 1, 1, 2], dtype=np.int16)
CPU = torch.device("cpu")


def split_of(labels: np.ndarray) -> Split:
    offsets = np.arange(len(labels) + 1) * 3
    return Split("train", [""] * len(labels), labels, np.ones(offsets[-1], np.int32), offsets, NAMES)


def loss_of(*words: str, smoothing: float = 0.0) -> TrainingLoss:
    settings = Settings(output_dir="/nonexistent", label_names=NAMES, class_weights=[*words], label_smoothing=smoothing)
    return TrainingLoss(settings, split_of(LABELS), CPU)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("words", [("none",), ("balanced",), ("1", "2.5", "7")])
def test_it_is_torchs_mean_over_all_sentences_of_a_step(words: tuple[str, ...], smoothing: float) -> None:
    loss, logits = loss_of(*words, smoothing=smoothing), torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(LABELS.astype(np.int64))
    known = {"none": None, "balanced": torch.tensor([7 / 12, 7 / 6, 7 / 3])}
    weight = known.get(words[0], torch.tensor([1.0, 2.5, 7.0]))
    expected = torch.nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing)(logits, labels)
    divisor = loss.weight_of(LABELS)
    for parts in ([7], [3, 4], [1, 1, 5]):
        sums = [loss(*part) for part in zip(logits.split(parts), labels.split(parts), strict=True)]
        assert float(sum(sums) / divisor) == pytest.approx(float(expected), rel=1e-6)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    settings = Settings(output_dir="/nonexistent", label_names=NAMES, class_weights=["balanced"])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    assert class_weights(settings, split_of(LABELS)) == pytest.approx(expected)
    lacking = class_weights(settings, split_of(LABELS[:6]))  # no sentence of c
    assert lacking == pytest.approx([6 / (3 * 4), 6 / (3 * 2), 1.0])


def test_the_divisor_of_a_step_is_the_weight_of_its_sentences() -> None:
    assert loss_of("1", "2", "4").weight_of(LABELS) == 4 * 1 + 2 * 2 + 4
    assert loss_of("none").weight_of(LABELS) == 7


@pytest.mark.parametrize("words", [("none",), ("1", "2", "4")])
def test_padding_of_a_captured_step_adds_nothing(words: tuple[str, ...]) -> None:
    loss = loss_of(*words, smoothing=0.1)
    batch = collate(split_of(LABELS), np.arange(7), 0, "packed")
    padded = Buckets(sentences=7, multiple=128, longest=66).pad(batch)
    assert len(padded.labels) > 7
    logits = torch.randn(len(padded.labels), 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    whole = loss(logits, padded.labels)
    assert whole.item() == pytest.approx(loss(logits[:7], batch.labels).item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(whole, logits)
    assert gradient[:7].abs().min() > 0
    assert not gradient[7:].any()
