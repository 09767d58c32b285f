"""Plots: of evaluations for TensorBoard, and of runs for `compare`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from sst2.evaluation.metrics import calibration


def plot_accuracy(file: Path, labels: list[str], metrics: list[dict[str, Any]]) -> None:
    """A point and its 95 % interval for each run.

    Args:
        file: PNG to write.
        labels: of the runs.
        metrics: of the runs, as in `metrics.json`.
    """
    figure = Figure(figsize=(8, 1.2 + 0.35 * len(labels)), layout="constrained")
    axes = figure.subplots()
    accuracy = [values["accuracy"] for values in metrics]
    lows, highs = zip(*(values["accuracy_ci95"] for values in metrics), strict=True)
    reach = [
        [value - low for value, low in zip(accuracy, lows, strict=True)],
        [high - value for value, high in zip(accuracy, highs, strict=True)],
    ]
    axes.errorbar(accuracy, range(len(labels)), xerr=reach, fmt="o", capsize=3)
    axes.set_yticks(range(len(labels)), labels, parse_math=False)  # a name may hold a $
    axes.invert_yaxis()
    axes.set_xlabel("accuracy with its 95 % interval (Wilson)")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=150)


def draw_evaluation(labels: np.ndarray, positive: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Confusion matrix, reliability diagram and ROC curve.

    Args:
        labels: (sentences,) 0 or 1.
        positive: (sentences,) probabilities of the class 1.
        names: of the classes.

    Returns:
        By name, the pictures: (height, width, 3) uint8.
    """
    predicted = (positive > 0.5).astype(np.int64)
    matrix = confusion_matrix(labels, predicted, labels=[0, 1])
    confidence = np.maximum(positive, 1 - positive)
    return {
        "confusion_matrix": _picture(lambda axes: _draw_confusion(axes, matrix, names)),
        "reliability": _picture(lambda axes: _draw_reliability(axes, confidence, predicted == labels)),
        "roc": _picture(lambda axes: _draw_roc(axes, labels, positive)),
    }


def _picture(draw: Callable[[Axes], None]) -> np.ndarray:
    figure = Figure(figsize=(4.4, 4), dpi=100)  # as large as TensorBoard shows it
    canvas = FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.16, right=0.96, bottom=0.13, top=0.91)  # a layout engine takes twice as long
    draw(figure.subplots())
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _draw_confusion(axes: Axes, matrix: np.ndarray, names: Sequence[str]) -> None:
    axes.imshow(matrix, cmap="Blues", vmin=0)
    for (row, column), count in np.ndenumerate(matrix):
        colour = "white" if count > matrix.max() / 2 else "black"
        axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=16)
    axes.set(title="confusion matrix", xlabel="predicted", ylabel="label")
    axes.set_xticks([0, 1], names, parse_math=False)
    axes.set_yticks([0, 1], names, rotation=90, va="center", parse_math=False)


def _draw_reliability(axes: Axes, confidence: np.ndarray, correct: np.ndarray) -> None:
    """Accuracy by confidence (Guo et al., 2017, figure 1): on the diagonal where the model knows what it knows."""
    counts, confident, right = calibration(confidence, correct)
    filled = counts > 0
    axes.plot([0.5, 1], [0.5, 1], color="grey", linestyle="--")
    means = confident[filled] / counts[filled]
    axes.scatter(means, right[filled] / counts[filled], s=10 + 300 * counts[filled] / counts.sum(), alpha=0.7)
    axes.set(title="reliability; area: sentences", xlabel="confidence", ylabel="accuracy", xlim=(0.48, 1.02))
    axes.set_ylim(-0.04, 1.04)
    axes.grid(alpha=0.3)


def _draw_roc(axes: Axes, labels: np.ndarray, positive: np.ndarray) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--")
    title = "ROC: one class only"
    if len(set(labels.tolist())) == 2:
        false_rate, true_rate, _ = roc_curve(labels, positive)
        axes.plot(false_rate, true_rate)
        title = f"ROC, area {roc_auc_score(labels, positive):.4f}"
    axes.set(title=title, xlabel="false positive rate", ylabel="true positive rate")
    axes.grid(alpha=0.3)
