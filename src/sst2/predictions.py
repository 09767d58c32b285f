"""What can be said of logits with numpy alone: probabilities, their order, a line for a person."""

from typing import Any

import numpy as np


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """(sentences, 2) logits to (sentences, 2) logarithms of the classes' probabilities, in float64."""
    # as scipy.special.log_softmax does it, bit for bit
    below_highest = np.asarray(logits, dtype=np.float64) - np.max(logits, axis=1, keepdims=True)
    return below_highest - np.log(np.exp(below_highest).sum(axis=1, keepdims=True))


def probability_positive(logits: np.ndarray) -> np.ndarray:
    """(sentences, 2) logits to (sentences,) probabilities of POSITIVE, in float64."""
    return np.exp(log_probabilities(logits))[:, 1]


def in_order_of_rows(rows: np.ndarray, logits: np.ndarray, count: int) -> np.ndarray:
    """Logits gathered from all ranks, in the order of the split.

    Args:
        rows: (sentences,) row number of each line of `logits`.
        logits: (sentences, 2).
        count: sentences of the split.

    Raises:
        RuntimeError: a sentence was not counted exactly once.
    """
    if not np.array_equal(np.sort(rows), np.arange(count)):
        raise RuntimeError(
            f"an evaluation of {count} sentences counted {len(rows)}, {len(set(rows))} of them different"
        )
    ordered = np.empty_like(logits)
    ordered[rows] = logits
    return ordered


def in_words(metrics: dict[str, Any], split: str) -> str:
    """One line for a person."""
    low, high = metrics["accuracy_ci95"]
    return (
        f"accuracy {metrics['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), f1 {metrics['f1']:.4f}, "
        f"loss {metrics['loss']:.4f} on {metrics['count']} {split} sentences"
    )
