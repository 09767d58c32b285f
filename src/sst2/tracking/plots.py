"""Plots of evaluations, for TensorBoard."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import ConfusionMatrixDisplay, RocCurveDisplay, auc, confusion_matrix, roc_curve

from sst2.evaluation.metrics import CALIBRATION_BINS
from sst2.utils.errors import shortened

HEIGHT = 4.0  # inches of a picture of two classes, at 100 dots each
MOST_NAMED = 20  # classes in a picture
LONGEST_NAME = 20  # characters


def draw_evaluation(labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Confusion matrix, reliability diagram and ROC curve, of more than two classes one against the rest.

    Args:
        labels: (sentences,) numbers of classes.
        probabilities: (sentences, classes).
        names: of the classes.

    Returns:
        By name, the pictures: (height, width, 3) uint8; no ROC curve where all labels are one class.
    """
    draw = _draw_two_classes if len(names) == 2 else _draw_several_classes
    pictures = draw(labels, probabilities, names_in_pictures(names))
    if np.ptp(labels) == 0:
        del pictures["roc"]
    return {name: _picture(content, size) for name, (content, size) in pictures.items()}


def names_in_pictures(names: Sequence[str]) -> list[str]:
    """Names of classes as they are drawn: short, and no two alike.

    The number of its class stands for a name with a character that matplotlib's font lacks, such as a Chinese one.
    """
    known = get_font(findfont("DejaVu Sans")).get_charmap().keys()  # the font that matplotlib brings, and uses
    drawn = [
        shortened(name, LONGEST_NAME) if known >= set(map(ord, name)) else f"class {number}"
        for number, name in enumerate(names)
    ]
    counts = Counter(drawn)
    return [name if counts[name] == 1 else f"{name} {number}" for number, name in enumerate(drawn)]


Drawing = dict[str, tuple[Callable[[Axes], object], float]]  # by name: what draws, and the picture's height in inches


def _draw_two_classes(labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]) -> Drawing:
    classes, positive = np.array(names), probabilities[:, 1]
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

    return {
        "confusion_matrix": (draw_confusion, HEIGHT),
        "reliability": (draw_reliability, HEIGHT),
        "roc": (draw_roc, HEIGHT),
    }


def _draw_several_classes(labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]) -> Drawing:
    """As large as their classes need, up to `MOST_NAMED`; of more, the matrix is colors without names and numbers."""
    count, predicted = len(names), probabilities.argmax(axis=1)
    are_named = count <= MOST_NAMED
    matrix = confusion_matrix(labels, predicted, labels=range(count))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)  # of a class's sentences: rare ones show as well

    def draw_confusion(axes: Axes) -> None:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xlabel("Predicted label")
        axes.set_ylabel("True label")
        if are_named:
            axes.set_xticks(range(count), names, rotation=90, fontsize=8)
            axes.set_yticks(range(count), names, fontsize=8)
            for row, column in np.argwhere(matrix):
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, matrix[row, column], ha="center", va="center", color=color, fontsize=7)

    def draw_reliability(axes: Axes) -> None:
        confidence, correct = probabilities.max(axis=1), predicted == labels
        CalibrationDisplay.from_predictions(correct, confidence, n_bins=CALIBRATION_BINS, ax=axes, pos_label=True)
        axes.set_xlabel("Probability of the predicted class")
        axes.set_ylabel("Share of right predictions")

    def draw_roc(axes: Axes) -> None:
        counts = np.bincount(labels, minlength=count)
        most = np.argsort(-counts, kind="stable")[:MOST_NAMED]
        axes.plot([0, 1], [0, 1], "k--", linewidth=0.8)
        for rank, number in enumerate(number for number in most if 0 < counts[number] < len(labels)):
            false_rate, true_rate, _ = roc_curve(labels == number, probabilities[:, number])
            style = ("-", "--")[rank // 10 % 2]  # matplotlib has ten colors
            axes.plot(false_rate, true_rate, style, label=f"{names[number]} ({auc(false_rate, true_rate):.2f})")
        axes.set_xlabel("False positive rate, each class against the rest")
        axes.set_ylabel("True positive rate")
        axes.legend(fontsize=7, loc="lower right", title="class (AUC)", title_fontsize=7, ncols=1 + (len(most) > 10))

    large = HEIGHT + 0.3 * min(count, MOST_NAMED)
    return {
        "confusion_matrix": (draw_confusion, large),
        "reliability": (draw_reliability, HEIGHT),
        "roc": (draw_roc, HEIGHT + 0.1 * min(count, MOST_NAMED)),
    }


def _picture(draw: Callable[[Axes], object], height: float) -> np.ndarray:
    figure = Figure(figsize=(1.1 * height, height), dpi=100)  # those of two classes as large as TensorBoard shows them
    canvas = FigureCanvasAgg(figure)
    if height == HEIGHT:
        figure.subplots_adjust(left=0.16, right=0.96, bottom=0.13, top=0.96)  # a layout engine takes twice as long
    else:
        figure.set_layout_engine("constrained")  # names of classes are of any length
    with rc_context({"text.parse_math": False}):  # the name of a class may hold a $
        draw(figure.subplots())
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
