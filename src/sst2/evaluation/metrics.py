"""The evaluation metric: everything that is derived from the logits of each sentence.

An `evaluate.Metric` that lives in the project: `evaluate.load("accuracy")` would download a script. Its libraries take
half a second to import: a run imports this module at its first evaluation.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import (
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
    roc_auc_score,
)

from sst2.config.flag_groups import LABEL_NAMES
from sst2.evaluation.predictions import log_probabilities
from sst2.evaluation.significance import wilson_interval

CALIBRATION_BINS = 15  # as in Guo et al. (2017)
MOST_IN_MATRIX = 100  # classes: the matrix of 1,000 is ten megabytes of text, at each evaluation
LENGTH_EDGES = (1, 9, 17, 33, 65)  # tokens; the first of each group

_DESCRIPTION = "Accuracy, precision, recall, F1, Matthews, ROC-AUC, loss and calibration of a classifier."
_INPUTS = """
Args:
    predictions: (sentences, classes) float, logits.
    references: (sentences,) int, numbers of classes.
    lengths: (sentences,) int, tokens per sentence.
Returns:
    accuracy, matthews, roc_auc, loss (mean cross-entropy in nats), ece, count, accuracy_ci95 (Wilson), confusion_matrix
    (rows: truth; up to 100 classes), accuracy_by_length, and
    of two classes: precision, recall, f1 (of the class 1, POSITIVE); roc_auc is None with one class only;
    of more: f1_macro, f1_weighted, precision_macro, recall_macro (over the classes that occur, as label or prediction),
    per_class (precision, recall, f1 and support, by name); roc_auc is the macro average of each class against the rest,
    None where a class is missing.
"""


class ClassificationMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no annotations
    """Metric over all sentences of a split; see `compute` for what goes in and comes out.

    Args:
        label_names: of the classes.
        with_macro_f1: whether two classes have f1_macro as well, which more always have.
    """

    def __init__(self, label_names: Sequence[str] = LABEL_NAMES, with_macro_f1: bool = False) -> None:
        self._label_names, self._with_macro_f1 = label_names, with_macro_f1
        # in memory, and no folder outside the cache that the job uses anyway
        super().__init__(keep_in_memory=True, cache_dir=str(datasets.config.HF_DATASETS_CACHE))

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float32"), length=len(self._label_names)),
                    "references": datasets.Value("int64"),
                    "lengths": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[int], lengths: list[int]) -> dict[str, Any]:
        logits, labels = np.array(predictions, dtype=np.float64), np.array(references)
        logarithms = log_probabilities(logits)
        predicted = logits.argmax(axis=1)
        correct = predicted == labels
        numbers = list(range(len(self._label_names)))
        are_all_there = len(set(labels.tolist())) == len(numbers)
        if len(numbers) == 2:
            positive = np.exp(logarithms[:, 1])
            confidence = np.maximum(positive, 1 - positive)
            roc_auc = float(roc_auc_score(labels, positive)) if are_all_there else None
            averages = _of_two_classes(labels, predicted, self._with_macro_f1)
        else:
            probabilities = np.exp(logarithms)
            confidence = probabilities.max(axis=1)
            roc_auc = (
                float(roc_auc_score(labels, probabilities, multi_class="ovr", labels=numbers))
                if are_all_there
                else None
            )
            averages = _of_several_classes(labels, predicted, self._label_names)
        matrix = {"confusion_matrix": confusion_matrix(labels, predicted, labels=numbers).tolist()}
        return {
            "accuracy": float(correct.mean()),
            **averages,
            "matthews": float(matthews_corrcoef(labels, predicted)),
            "roc_auc": roc_auc,
            "loss": float(-logarithms[np.arange(len(labels)), labels].mean()),
            "ece": expected_calibration_error(confidence, correct),
            "count": len(labels),
            "accuracy_ci95": list(wilson_interval(int(correct.sum()), len(labels))),
            **(matrix if len(numbers) <= MOST_IN_MATRIX else {}),
            "accuracy_by_length": accuracy_by_length(correct, np.array(lengths)),
        }


def _of_two_classes(labels: np.ndarray, predicted: np.ndarray, with_macro_f1: bool) -> dict[str, Any]:
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, average="binary", zero_division=0.0)
    of_class_1 = {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
    macro = {"f1_macro": float(f1_score(labels, predicted, average="macro", zero_division=0.0))}
    return of_class_1 | (macro if with_macro_f1 else {})


def _of_several_classes(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0.0)
    weighted = f1_score(labels, predicted, average="weighted", zero_division=0.0)
    of_each = precision_recall_fscore_support(labels, predicted, labels=range(len(names)), zero_division=0.0)
    rows = zip(*(values.tolist() for values in of_each), strict=True)
    return {
        "f1_macro": float(f1),
        "f1_weighted": float(weighted),
        "precision_macro": float(precision),
        "recall_macro": float(recall),
        "per_class": {
            name: dict(zip(("precision", "recall", "f1", "support"), row, strict=True))
            for name, row in zip(names, rows, strict=True)
        },
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
