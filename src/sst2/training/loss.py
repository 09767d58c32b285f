"""The loss of training: cross-entropy with `--class_weights` and `--label_smoothing`, as torch has them."""

import logging

import numpy as np
import torch
from torch.nn import functional as F

from sst2.config.settings import Settings
from sst2.data.splits import MOST_TOLD, Split
from sst2.utils.errors import shortened

logger = logging.getLogger(__name__)


class TrainingLoss:
    """Sums of losses, and what they are divided by: torch's weighted mean over all sentences of a step.

    With class weights w, label smoothing e and K classes, a sentence of class y costs (1 - e) w[y] (-log p[y]) +
    e / K sum_c w[c] (-log p[c]), and the step's loss is the sum of that over its sentences, divided by their sum of
    w[y] (`torch.nn.CrossEntropyLoss`). Every rank knows that divisor from the labels of the step: nothing is gathered.

    Args:
        settings: with the names of the classes.
        train: the training sentences, of which `--class_weights balanced` counts the labels.
        device: to compute on.
    """

    def __init__(self, settings: Settings, train: Split, device: torch.device) -> None:
        self._class_weights = class_weights(settings, train)
        self._on_device = (
            None if self._class_weights is None else torch.tensor(self._class_weights, dtype=torch.float32).to(device)
        )
        self._smoothing = settings.label_smoothing

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sum of some sentences' losses, () float32 in nats; a label of -100 is no sentence.

        `logits` are (sentences, classes), `labels` (sentences,) int64.
        """
        return F.cross_entropy(
            logits.float(), labels, weight=self._on_device, label_smoothing=self._smoothing, reduction="sum"
        )

    def weight_of(self, labels: np.ndarray) -> float:
        """The sum of the weights of sentences with these labels, (sentences,): their number without class weights.

        Of the sentences of all ranks, it is what the losses of a step are divided by.
        """
        return float(len(labels) if self._class_weights is None else self._class_weights[labels].sum())


def class_weights(settings: Settings, train: Split) -> np.ndarray | None:
    """(classes,) float64 of `--class_weights`; None without it.

    `balanced` is sentences / (classes * sentences of the class), as in scikit-learn (King and Zeng, 2001); a class
    without sentences has weight 1, which nothing is multiplied with but its part of the label smoothing.
    """
    if settings.class_weights == ["none"]:
        return None
    if settings.class_weights != ["balanced"]:
        return np.array([float(word) for word in settings.class_weights])
    counts = np.bincount(train.labels, minlength=len(settings.label_names))
    weights = np.where(counts > 0, len(train) / (len(counts) * np.maximum(counts, 1)), 1.0)
    told = ", ".join(f"{name} {weight:.4g}" for name, weight in zip(settings.label_names, weights, strict=True))
    logger.info("balanced weights of the classes in the loss: %s", shortened(told, MOST_TOLD))
    return weights
