"""Plots: of evaluations for TensorBoard, and of runs for `compare`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import ConfusionMatrixDisplay, RocCurveDisplay

from sst2.evaluation.metrics import CALIBRATION_BINS


def plot_accuracy(file: Path, labels: list[str], metrics: list[dict[str, Any]]) -> None:
    """Write a PNG: a point and its 95 % interval for each run, whose metrics are as in `metrics.json`."""
    figure = Figure(figsize=(8, 1.2 + 0.35 * len(labels)), layout="constrained")
    axes = figure.subplots()
    accuracy = np.array([values["accuracy"] for values in metrics])
    intervals = np.array([values["accuracy_ci95"] for values in metrics])
    axes.errorbar(accuracy, range(len(labels)), xerr=np.abs(intervals.T - accuracy), fmt="o", capsize=3)
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
        By name, the pictures: (height, width, 3) uint8; no ROC curve where all labels are one class.
    """
    classes = np.array(names)
    truth, predicted = classes[labels], classes[(positive > 0.5).astype(np.int64)]

    def draw_confusion(axes: Axes) -> None:
        ConfusionMatrixDisplay.from_predictions(
            truth, predicted, labels=classes, cmap="Blues", colorbar=False, im_kw={"vmin": 0}, ax=axes
        )
        axes.set_yticks([0, 1], names, rotation=90, va="center")

    def draw_reliability(axes: Axes) -> None:
        CalibrationDisplay.from_predictions(truth, positive, pos_label=names[1], n_bins=CALIBRATION_BINS, ax=axes)

    def draw_roc(axes: Axes) -> None:
        RocCurveDisplay.from_predictions(truth, positive, pos_label=names[1], plot_chance_level=True, ax=axes)

    pictures = {"confusion_matrix": _picture(draw_confusion), "reliability": _picture(draw_reliability)}
    return pictures if np.ptp(labels) == 0 else pictures | {"roc": _picture(draw_roc)}


def _picture(draw: Callable[[Axes], object]) -> np.ndarray:
    figure = Figure(figsize=(4.4, 4), dpi=100)  # as large as TensorBoard shows it
    canvas = FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.16, right=0.96, bottom=0.13, top=0.96)  # a layout engine takes twice as long
    with rc_context({"text.parse_math": False}):  # the name of a class may hold a $
        draw(figure.subplots())
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
