"""Logits as probabilities, as a line for a person, and as a run's predictions.csv, which is read here as well."""

import csv
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from sst2.data.csv_cells import from_cell, predictions_header, to_cell
from sst2.utils.atomic_file import put_in_place


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """(sentences, classes) logits to the logarithms of the classes' probabilities, likewise, in float64."""
    # as scipy.special.log_softmax does it, bit for bit
    below_highest = np.asarray(logits, dtype=np.float64) - np.max(logits, axis=1, keepdims=True)
    logarithms: np.ndarray = below_highest - np.log(np.exp(below_highest).sum(axis=1, keepdims=True))
    return logarithms


def reported_probabilities(logits: np.ndarray) -> np.ndarray:
    """Logits to the probabilities that a table has a column of: (sentences, classes) float64, of two the class 1's."""
    probabilities: np.ndarray = np.exp(log_probabilities(logits))
    return probabilities[:, 1:] if probabilities.shape[1] == 2 else probabilities


def in_split_order(indices: np.ndarray, logits: np.ndarray, count: int) -> np.ndarray:
    """Logits gathered from all ranks, in the order of the split.

    Args:
        indices: (sentences,) of the sentence of each line of `logits` in the split.
        logits: (sentences, classes).
        count: sentences of the split.

    Raises:
        RuntimeError: a sentence was not counted exactly once.
    """
    if not np.array_equal(np.sort(indices), np.arange(count)):
        raise RuntimeError(
            f"an evaluation of {count} sentences counted {len(indices)}, {len(set(indices))} of them different"
        )
    ordered = np.empty_like(logits)
    ordered[indices] = logits
    return ordered


def in_words(metrics: dict[str, Any], split: str) -> str:
    """One line for a person."""
    low, high = metrics["accuracy_ci95"]
    name = f1_name(metrics)
    return (
        f"accuracy {metrics['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), {name} {metrics[name]:.4f}, "
        f"loss {metrics['loss']:.4f} on {metrics['count']} {split} sentences"
    )


def final_in_words(metrics: dict[str, Any]) -> str:
    """What a run has come to, of what `metrics.json` holds, in a line for somebody who asks how good the model is."""
    low, high = (100 * bound for bound in metrics["accuracy_ci95"])
    took, name = timedelta(seconds=round(metrics["seconds"])), f1_name(metrics)
    return (
        f"accuracy {100 * metrics['accuracy']:.1f} % on {metrics['count']} {metrics['split']} sentences (95 % interval "
        f"{low:.1f} to {high:.1f} %), {name} {metrics[name]:.4f}, with the weights after step {metrics['step']}; "
        f"optimizer steps took {took}"
    )


def f1_name(metrics: dict[str, Any]) -> str:
    """The F1 that an evaluation is told by: of the class 1 where there are two, else the macro average."""
    return "f1" if "f1" in metrics else "f1_macro"


def write_predictions(file: Path, splits: Sequence[tuple[Any, np.ndarray]]) -> None:
    """One line per sentence: split, row, sentence, label (empty if unknown), prediction, probability of the class 1.

    Of more than two classes there is a probability of each.

    Texts are written as `to_cell` has them, so that a spreadsheet calculates none. The file appears when it is whole;
    `splits` are pairs of a `Split` and its (sentences, classes) logits.
    """
    unfinished = file.with_name(f".{file.name}.unfinished")
    with unfinished.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(predictions_header(splits[0][0].label_names))
        for split, logits in splits:
            probabilities, predicted = reported_probabilities(logits), logits.argmax(axis=1)
            names = [*map(to_cell, split.label_names), ""]  # -1, no label, is the last
            for row, sentence in enumerate(split.sentences):
                label, prediction = names[split.labels[row]], names[predicted[row]]
                cells = [f"{probability:.6f}" for probability in probabilities[row]]
                writer.writerow([split.name, row, to_cell(sentence), label, prediction, *cells])
    put_in_place(unfinished, file)


def read_predictions(file: Path, split: str) -> list[dict[str, str]]:
    """The lines of one split, by column, with the texts that were written.

    Raises:
        OSError, ValueError, LookupError, csv.Error: it cannot be read, or is no such file.
    """
    with file.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == split]
    return [row | {name: from_cell(row[name]) for name in ("sentence", "label", "prediction")} for row in rows]
