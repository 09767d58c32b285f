"""The metrics are what their definitions say: by hand on a few sentences, by scikit-learn on many."""

import os
import sys
from math import exp, log, sqrt
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from sst2.evaluation.metrics import ClassificationMetric, accuracy_by_length, expected_calibration_error
from sst2.evaluation.predictions import log_probabilities
from tests.support.processes import results

# How much the POSITIVE logit is above the NEGATIVE one, and the truth: 2 true and 1 false positives, 2 and 2 negatives.
MARGINS = [2.0, -1.0, -3.0, 1.0, 0.5, -2.0, -0.5]
LABELS = [1, 1, 0, 0, 1, 1, 0]


def compute(margins: list[float], labels: list[int]) -> dict[str, Any]:
    logits = [[5.0, 5.0 + margin] for margin in margins]
    metrics: dict[str, Any] = ClassificationMetric().compute(
        predictions=logits, references=labels, lengths=[4] * len(labels)
    )
    return metrics


def test_a_small_case_by_hand() -> None:
    result = compute(MARGINS, LABELS)
    p, n, z = 4 / 7, 7, 1.959963984540054
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    signed = [margin if label else -margin for margin, label in zip(MARGINS, LABELS, strict=True)]
    expected = {
        "accuracy": 4 / 7,
        "precision": 2 / 3,
        "recall": 2 / 4,
        "f1": 4 / 7,
        "matthews": (2 * 2 - 1 * 2) / sqrt(3 * 4 * 3 * 4),
        "roc_auc": 7 / 12,  # pairs of a positive and a negative sentence in the right order
        "loss": sum(log(1 + exp(-margin)) for margin in signed) / 7,
        "count": 7,
        "accuracy_ci95": pytest.approx([center - half, center + half], abs=1e-6),
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert result["confusion_matrix"] == [[2, 1], [2, 2]]  # rows are the truth: one NEGATIVE was called POSITIVE
    assert result["accuracy_by_length"] == {"1-8": {"accuracy": 4 / 7, "count": 7}}


def test_many_sentences_as_scikit_learn_counts_them() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500)
    logits = rng.normal(size=(500, 2)) + 0.8 * np.eye(2)[labels]
    logits[:40] = 0.25 * np.round(4 * logits[:40])  # ties
    logits = logits.astype(np.float32)
    lengths = rng.integers(3, 100, 500)
    result = ClassificationMetric().compute(predictions=logits, references=labels, lengths=lengths)
    predicted, positive = logits.argmax(axis=1), np.exp(log_probabilities(logits))[:, 1]
    assert result["accuracy"] == sklearn_metrics.accuracy_score(labels, predicted)
    assert result["precision"] == pytest.approx(sklearn_metrics.precision_score(labels, predicted))
    assert result["recall"] == pytest.approx(sklearn_metrics.recall_score(labels, predicted))
    assert result["f1"] == pytest.approx(sklearn_metrics.f1_score(labels, predicted))
    assert result["matthews"] == pytest.approx(sklearn_metrics.matthews_corrcoef(labels, predicted))
    assert result["roc_auc"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, positive))
    assert result["loss"] == pytest.approx(sklearn_metrics.log_loss(labels, positive))
    low, high = result["accuracy_ci95"]
    assert low < result["accuracy"] < high
    by_length = result["accuracy_by_length"].values()
    assert sum(group["count"] for group in by_length) == 500
    assert sum(group["count"] * group["accuracy"] for group in by_length) / 500 == pytest.approx(result["accuracy"])


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_has_no_roc_auc(label: int) -> None:
    result = compute([1.0, -1.0], [label, label])
    assert result["roc_auc"] is None
    assert result["accuracy"] == 0.5
    assert np.array(result["confusion_matrix"]).shape == (2, 2)


def test_extreme_logits_give_finite_numbers() -> None:
    result = compute([3000.0, -3000.0], [1, 1])
    assert result["loss"] == pytest.approx(1500)
    assert result["ece"] == pytest.approx(0.5)
    assert result["accuracy_ci95"][1] <= 1.0


def test_calibration_by_hand() -> None:
    # Of 15 bins, 0.95 and 0.97 share the last one; 0.75 and 0.70 have one each.
    confidence, correct = np.array([0.95, 0.97, 0.75, 0.70]), np.array([True, False, True, False])
    expected = (abs(0.5 - 0.96) * 2 + abs(1 - 0.75) + abs(0 - 0.70)) / 4
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected)
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0.0
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([False, True])) == 0.5
    # The metric hands over the confidence in what was predicted, for NEGATIVE as for POSITIVE.
    sure = log(0.9 / 0.1)
    assert compute([sure, -sure], [1, 0])["ece"] == pytest.approx(0.1, abs=1e-6)
    assert compute([sure, -sure], [0, 1])["ece"] == pytest.approx(0.9, abs=1e-6)


def test_groups_of_length_and_their_edges() -> None:
    lengths = np.array([3, 8, 9, 16, 17, 32, 33, 64, 65, 500])
    correct = np.array([True, False, True, True, False, False, True, False, True, True])
    assert accuracy_by_length(correct, lengths) == {
        "1-8": {"accuracy": 0.5, "count": 2},
        "9-16": {"accuracy": 1.0, "count": 2},
        "17-32": {"accuracy": 0.0, "count": 2},
        "33-64": {"accuracy": 0.5, "count": 2},
        "65+": {"accuracy": 1.0, "count": 2},
    }
    assert list(accuracy_by_length(correct[:1], np.array([64]))) == ["33-64"]


def compute_watched() -> tuple[dict[str, Any], list[str], list[str]]:
    written: list[str] = []
    asked: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
        if event in ("os.mkdir", "os.rename") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(str(arguments[0]))
        elif event in ("socket.connect", "socket.getaddrinfo"):
            asked.append(f"{event} {arguments[-1]}")

    sys.addaudithook(hook)
    return compute(MARGINS, LABELS), written, asked


def test_nothing_is_written_outside_the_datasets_cache_and_nobody_is_asked() -> None:
    [(result, written, asked)] = results(compute_watched)
    assert result["accuracy"] == 4 / 7
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    outside = [name for name in written if not Path(name).is_relative_to(cache) and not name.startswith("/dev/")]
    assert (outside, asked) == ([], [])


NAMES = ("a", "b", "c")
# Truth and prediction of nine sentences: of each class 5, 3 and 1 are there, and 4, 4 and 1 are predicted.
TRUTH = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2])
PREDICTED = np.array([0, 0, 0, 1, 2, 1, 1, 0, 1])


def compute_three(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    metrics: dict[str, Any] = ClassificationMetric(NAMES).compute(
        predictions=np.log(probabilities), references=labels, lengths=[4] * len(labels)
    )
    return metrics


def test_three_classes_by_hand() -> None:
    probabilities = np.full((9, 3), 0.2)
    probabilities[np.arange(9), PREDICTED] = 0.6
    result = compute_three(probabilities, TRUTH)
    of_each = {  # precision, recall, F1, support
        "a": (3 / 4, 3 / 5, 2 * 3 / (4 + 5), 5),
        "b": (2 / 4, 2 / 3, 2 * 2 / (4 + 3), 3),
        "c": (0.0, 0.0, 0.0, 1),
    }
    for name, values in of_each.items():
        assert [*result["per_class"][name]] == ["precision", "recall", "f1", "support"]
        assert tuple(result["per_class"][name].values()) == pytest.approx(values)
    precision, recall, f1, support = (np.array(values) for values in zip(*of_each.values(), strict=True))
    expected = {
        "accuracy": 5 / 9,
        "f1_macro": f1.mean(),
        "f1_weighted": (f1 * support).sum() / 9,
        "precision_macro": precision.mean(),
        "recall_macro": recall.mean(),
        "loss": -(5 * log(0.6) + 4 * log(0.2)) / 9,
        "ece": abs(5 / 9 - 0.6),  # all are sure by 0.6
        "count": 9,
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert result["confusion_matrix"] == [[3, 1, 1], [1, 2, 0], [0, 1, 0]]
    assert result["roc_auc"] == pytest.approx(np.mean(by_pairs(probabilities)))
    assert not {"precision", "recall", "f1"} & set(result)


def by_pairs(probabilities: np.ndarray) -> list[float]:
    """ROC-AUC of each class against the rest, by its definition: the share of pairs that are in the right order."""
    found = []
    for number in range(3):
        scores = probabilities[:, number]
        inside, outside = scores[number == TRUTH, None], scores[None, number != TRUTH]
        found.append(float(((inside > outside) + 0.5 * (inside == outside)).mean()))
    return found


def test_many_sentences_of_several_classes_as_scikit_learn_counts_them() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 500, p=[0.7, 0.25, 0.05])
    logits = (rng.normal(size=(500, 3)) + 1.2 * np.eye(3)[labels]).astype(np.float32)
    result = ClassificationMetric(NAMES).compute(predictions=logits, references=labels, lengths=[3] * 500)
    predicted, probabilities = logits.argmax(axis=1), np.exp(log_probabilities(logits))
    for average in ("macro", "weighted"):
        expected = sklearn_metrics.f1_score(labels, predicted, average=average)
        assert result[f"f1_{average}"] == pytest.approx(expected)
    assert result["matthews"] == pytest.approx(sklearn_metrics.matthews_corrcoef(labels, predicted))
    assert result["loss"] == pytest.approx(sklearn_metrics.log_loss(labels, probabilities))
    one_vs_rest = sklearn_metrics.roc_auc_score(labels, probabilities, multi_class="ovr")
    assert result["roc_auc"] == pytest.approx(one_vs_rest)
    report = sklearn_metrics.classification_report(labels, predicted, target_names=NAMES, output_dict=True)
    for name in NAMES:
        mine = dict(
            zip(("precision", "recall", "f1-score", "support"), result["per_class"][name].values(), strict=True)
        )
        assert mine == pytest.approx(report[name])


def test_a_class_that_is_missing_has_no_roc_auc_and_counts_where_it_is_predicted() -> None:
    probabilities = np.full((4, 3), 0.1)
    probabilities[np.arange(4), [0, 0, 1, 1]] = 0.8
    result = compute_three(probabilities, np.array([0, 0, 1, 0]))
    assert result["roc_auc"] is None
    assert result["per_class"]["c"]["support"] == 0
    assert result["f1_macro"] == pytest.approx((4 / 5 + 2 / 3) / 2)  # of the two that there are
    probabilities[3] = [0.1, 0.1, 0.8]
    taken_for_c = compute_three(probabilities, np.array([0, 0, 1, 0]))
    assert taken_for_c["f1_macro"] == pytest.approx((4 / 5 + 1 + 0) / 3)


def test_two_classes_have_a_macro_f1_where_the_model_is_chosen_by_it() -> None:
    logits = [[5.0, 5.0 + margin] for margin in MARGINS]
    plain, chosen = (
        ClassificationMetric(with_macro_f1=wanted).compute(predictions=logits, references=LABELS, lengths=[4] * 7)
        for wanted in (False, True)
    )
    # NEGATIVE: 2 found of 3, 4 predicted; POSITIVE: 2 found of 4, 3 predicted.
    assert chosen.pop("f1_macro") == pytest.approx((4 / 7 + 4 / 7) / 2)
    assert chosen == plain
