"""The evaluation metric: everything that is derived from one logit pair per sentence.

An `evaluate.Metric` that lives in the project: `evaluate.load("accuracy")` would download a script. Its libraries take
half a second to import: a run imports this module at its first evaluation.
"""

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import confusion_matrix, matthews_corrcoef, precision_recall_fscore_support, roc_auc_score

from sst2.evaluation.predictions import log_probabilities
from sst2.evaluation.significance import wilson_interval

CALIBRATION_BINS = 15  # as in Guo et al. (2017)
LENGTH_EDGES = (1, 9, 17, 33, 65)  # tokens; the first of each group

_DESCRIPTION = "Accuracy, precision, recall, F1, Matthews, ROC-AUC, loss and calibration of a binary classifier."
_INPUTS = """
Args:
    predictions: (sentences, 2) float, logits of NEGATIVE and POSITIVE.
    references: (sentences,) int, the labels 0 and 1.
    lengths: (sentences,) int, tokens per sentence.
Returns:
    accuracy, precision, recall, f1 (of POSITIVE), matthews, roc_auc (None with one class only), loss (mean
    cross-entropy in nats), ece, count, accuracy_ci95 (Wilson), confusion_matrix (rows: truth), accuracy_by_length.
"""


class SentimentMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no annotations
    """Metric over all sentences of a split; see `compute` for what goes in and comes out."""

    def __init__(self) -> None:
        # in memory, and no folder outside the cache that the job uses anyway
        super().__init__(keep_in_memory=True, cache_dir=str(datasets.config.HF_DATASETS_CACHE))

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float32"), length=2),
                    "references": datasets.Value("int64"),
                    "lengths": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[int], lengths: list[int]) -> dict[str, Any]:
        logits, labels = np.array(predictions, dtype=np.float64), np.array(references)
        logarithms = log_probabilities(logits)
        positive = np.exp(logarithms[:, 1])
        predicted = logits.argmax(axis=1)
        correct = predicted == labels
        precision, recall, f1, _ = precision_recall_fscore_support(
            labels, predicted, average="binary", zero_division=0.0
        )
        return {
            "accuracy": float(correct.mean()),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "matthews": float(matthews_corrcoef(labels, predicted)),
            "roc_auc": float(roc_auc_score(labels, positive)) if len(set(labels.tolist())) == 2 else None,
            "loss": float(-logarithms[np.arange(len(labels)), labels].mean()),
            "ece": expected_calibration_error(np.maximum(positive, 1 - positive), correct),
            "count": len(labels),
            "accuracy_ci95": list(wilson_interval(int(correct.sum()), len(labels))),
            "confusion_matrix": confusion_matrix(labels, predicted, labels=[0, 1]).tolist(),
            "accuracy_by_length": accuracy_by_length(correct, np.array(lengths)),
        }


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by size (Guo et al., 2017, eq. 3).

    Args:
        confidence: (sentences,) probability of the predicted class.
        correct: (sentences,) bool.
    """
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    confident, right = (np.bincount(bins, weights, CALIBRATION_BINS) for weights in (confidence, correct))
    return float(np.abs(right - confident).sum() / len(confidence))


def accuracy_by_length(correct: np.ndarray, lengths: np.ndarray) -> dict[str, dict[str, float]]:
    """Accuracy and count per group of token lengths that occurs, e.g. `{"9-16": {"accuracy": 0.9, "count": 40}}`."""
    groups = {}
    group_of = np.searchsorted(LENGTH_EDGES, lengths, side="right") - 1
    for group, first in enumerate(LENGTH_EDGES):
        members = correct[group_of == group]
        if len(members):
            is_last = group + 1 == len(LENGTH_EDGES)
            name = f"{first}+" if is_last else f"{first}-{LENGTH_EDGES[group + 1] - 1}"
            groups[name] = {"accuracy": float(members.mean()), "count": len(members)}
    return groups
