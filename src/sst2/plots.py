"""Pictures of figures."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


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
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy with its 95 % interval (Wilson)")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=150)
