"""Logits come back in the order of their sentences, and as the probabilities that scipy makes of them."""

import numpy as np
import pytest
from scipy.special import log_softmax

from sst2.evaluation.predictions import (
    final_in_words,
    in_split_order,
    in_words,
    log_probabilities,
    reported_probabilities,
)


def test_logits_of_all_ranks_are_put_in_order_and_each_sentence_counts_once() -> None:
    logits = np.array([[2.0, -2.0], [0.0, 0.5], [1.0, -1.0]], dtype=np.float32)
    ordered = in_split_order(np.array([2, 0, 1]), logits, 3)
    assert ordered.tolist() == [[0.0, 0.5], [1.0, -1.0], [2.0, -2.0]]
    assert ordered.dtype == np.float32
    for rows in ([0, 1], [0, 1, 1], [0, 1, 3], [0, 1, 2, 2]):  # missing, twice, foreign, one too many
        with pytest.raises(RuntimeError, match=f"an evaluation of 3 sentences counted {len(rows)}, "):
            in_split_order(np.array(rows), np.zeros((len(rows), 2), np.float32), 3)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_are_those_of_scipy_bit_for_bit(scale: float, dtype: type) -> None:
    logits: np.ndarray = (scale * np.random.default_rng(0).normal(size=(1000, 2))).astype(dtype)
    expected = log_softmax(logits.astype(np.float64), axis=1)
    result = log_probabilities(logits)
    assert result.dtype == np.float64
    assert result.tobytes() == expected.tobytes()
    assert reported_probabilities(logits).tobytes() == np.exp(expected[:, 1]).tobytes()


def test_a_line_for_a_person() -> None:
    metrics = {"accuracy": 0.9, "accuracy_ci95": [0.85, 0.94], "f1": 0.91, "loss": 0.25, "count": 872}
    line = "accuracy 0.9000 (95 % interval 0.8500 to 0.9400), f1 0.9100, loss 0.2500 on 872 validation sentences"
    assert in_words(metrics, "validation") == line


def test_a_run_says_how_good_its_model_is() -> None:
    metrics = {"accuracy": 0.9333, "accuracy_ci95": (0.9105, 0.9507), "count": 600, "split": "validation"}
    assert final_in_words(metrics | {"f1": 0.9298, "step": 845, "seconds": 21.4}) == (
        "accuracy 93.3 % on 600 validation sentences (95 % interval 91.0 to 95.1 %), f1 0.9298, with the weights after "
        "step 845; optimizer steps took 0:00:21"
    )
