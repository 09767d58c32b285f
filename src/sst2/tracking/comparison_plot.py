"""The plot of `compare`: seeds of each configuration, their mean with its interval, and the baseline as a line."""

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sst2.evaluation.comparison import Comparison
from sst2.evaluation.configurations import Configuration
from sst2.utils.console import shortened_middle

WIDTH = 10.0  # inches
LINE = 0.19  # inches of a line of a label
GAP = 0.16  # inches between two rows
BELOW = 0.08  # inches from a mean to its seeds, so that none hides the other
AROUND = 1.3  # inches of each panel for its title and axis, and of the figure for its legend
LABEL_WIDTH, LABEL_LINES = 44, 3  # characters and lines of a label at most
LONGEST_WORD = 28  # characters of a name or a value in it; no setting has a longer name
DOTS, MOST_DOTS = 150, 2**16 - 1  # an inch; and from top to bottom at most, which is what the PNG's writer can do
SEED, MEAN, RUN, BASELINE = "tab:gray", "tab:blue", "tab:green", "tab:red"


def plot_comparison(file: Path, comparison: Comparison) -> None:
    """Write a PNG with a row for each configuration that has finished runs, however many and with whatever names.

    Configurations that were evaluated on different sentences are in different panels.
    """
    groups = [group for group in comparison.configurations if group.finished]
    panels: dict[int | None, list[Configuration]] = {}
    for group in groups:
        panels.setdefault(group.evaluated_on, []).append(group)
    labels = {group.number: _label(group, comparison) for group in groups}
    heights = [
        AROUND + sum(GAP + LINE * (1 + labels[group.number].count("\n")) for group in panel)
        for panel in panels.values()
    ]
    height = sum(heights) + 0.4
    with rc_context({"text.parse_math": False, "font.size": 9}):  # a name may hold a $
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        column = figure.subplots(len(panels), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for axes, panel in zip(column, panels.values(), strict=True):
            _draw(axes, panel, [labels[group.number] for group in panel], comparison)
        handles = {
            label: handle for axes in column for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # it is drawn as a box; the tables have the letter
            figure.savefig(file, dpi=min(DOTS, MOST_DOTS / height))


def _label(group: Configuration, comparison: Comparison) -> str:
    """A configuration's number and settings, on few lines: long values are shortened in their middle."""
    settings = comparison.label(group).split(", ")
    words = [" ".join(shortened_middle(word, LONGEST_WORD) for word in setting.split(" ")) for setting in settings]
    kept_whole = [word.replace(" ", "\N{NO-BREAK SPACE}") if len(word) <= LABEL_WIDTH else word for word in words]
    text = f"{group.number}: {', '.join(kept_whole)}"
    return "\n".join(textwrap.wrap(text, LABEL_WIDTH, max_lines=LABEL_LINES, placeholder=" …", break_on_hyphens=False))


def _draw(axes: Axes, groups: Sequence[Configuration], labels: Sequence[str], comparison: Comparison) -> None:
    """One panel: configurations that were evaluated on the same sentences, the first on top."""
    seen: list[float] = []  # accuracies, and ends of intervals, that must be in sight
    spans: list[float] = []  # ends of intervals over few seeds, which may be as long as the axis and longer
    lines = [1 + label.count("\n") for label in labels]
    middles = np.cumsum([GAP + LINE * count for count in lines]) - [(GAP + LINE * count) / 2 for count in lines]
    for group, y in zip(groups, middles, strict=True):
        values, found = group.values("accuracy"), group.summary("accuracy")
        assert found is not None
        seen += values
        said = f"{found.mean:.4f}"
        if found.low is not None and found.high is not None:
            spans += [found.low, found.high]
            below = [y + BELOW] * len(values)
            axes.scatter(values, below, s=16, facecolors="white", edgecolors=SEED, label="a seed", zorder=3)
            _point(
                axes, found.mean, y, (found.low, found.high), "D", MEAN, "mean over seeds, 95 % interval (Student's t)"
            )
            said += f" ± {found.deviation:.4f}, {len(values)} seeds"
        elif len(group.finished) == 1:
            low, high = group.finished[0].metrics["accuracy_ci95"]  # type: ignore[index]
            seen += [low, high]
            _point(axes, found.mean, y, (low, high), "o", RUN, "one run, 95 % interval over sentences (Wilson)")
            said += ", one run"
        else:
            axes.plot([found.mean], [y], "o", color=RUN, label="one seed, mean of its repeats")
            said += f", {len(group.finished)} repeats"
        axes.text(1.01, y, said, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    reference = comparison.reference
    if reference in groups and reference is not None and (found := reference.summary("accuracy")):
        axes.axvline(found.mean, color=BASELINE, linestyle="--", linewidth=1, zorder=1, label="baseline's mean")
    low, high = min(seen), max(seen)
    span = max(high - low, 0.01)
    low, high = (
        min([low, *(max(end, low - span) for end in spans)]),
        max([high, *(min(end, high + span) for end in spans)]),
    )
    axes.set_xlim(low - 0.04 * span, high + 0.04 * span)
    axes.set_ylim(float(sum(GAP + LINE * count for count in lines)), 0)
    axes.set_yticks(middles, labels, fontsize=8)
    axes.set_xlabel("accuracy")
    axes.set_title(f"evaluated on {comparison.set_name(groups[0])}", fontsize=9)
    axes.grid(axis="x", alpha=0.3)


def _point(axes: Axes, x: float, y: float, ends: tuple[float, float], marker: str, color: str, label: str) -> None:
    axes.errorbar(
        [x], [y], xerr=[[x - ends[0]], [ends[1] - x]], fmt=marker, color=color, markersize=5, capsize=3, label=label
    )
