"""Error analysis: tables of misclassified sentences, and of those whose prediction has changed, in Markdown."""

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sst2.data.splits import Split

ROWS = 10  # of a table


def most_confident_mistakes(split: "Split", positive: np.ndarray) -> str:
    """The mistakes that the model is surest of, by its (sentences,) probabilities of the class 1."""
    wrong = np.flatnonzero(_predicted(positive) != split.labels)
    worst = wrong[np.argsort(-np.abs(positive[wrong] - 0.5), kind="stable")]
    lines = [f"**{len(wrong)} of {len(split)} sentences are classified wrongly.**", ""]
    if len(wrong):
        rows = ((_label(split, row), f"{positive[row]:.3f}", split.sentences[row]) for row in worst[:ROWS])
        lines += _table(("label", f"probability of {_cell(split.label_names[1])}", "sentence"), rows)
    return "\n".join(lines)


def changed_sides(split: "Split", before: np.ndarray, positive: np.ndarray) -> str:
    """The sentences that are classified otherwise than at the evaluation before, those that changed most first.

    `before` and `positive` are (sentences,) probabilities of the class 1, then and now.
    """
    changed = np.flatnonzero(_predicted(before) != _predicted(positive))
    right_now = int((_predicted(positive)[changed] == split.labels[changed]).sum())
    lines = [f"**{right_now} sentences became right, {len(changed) - right_now} became wrong.**", ""]
    if len(changed):
        most = changed[np.argsort(-np.abs(positive[changed] - before[changed]), kind="stable")]
        rows = (
            (_label(split, row), f"{before[row]:.3f}", f"{positive[row]:.3f}", split.sentences[row])
            for row in most[:ROWS]
        )
        lines += _table(("label", f"probability of {_cell(split.label_names[1])} before", "now", "sentence"), rows)
    return "\n".join(lines)


def _predicted(positive: np.ndarray) -> np.ndarray:
    """(sentences,) as the argmax of the logits has it: 0 where both are equal."""
    return (positive > 0.5).astype(np.int64)


def _label(split: "Split", row: int) -> str:
    return _cell(split.label_names[split.labels[row]])


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *([*values, _cell(sentence)] for *values, sentence in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(sentence: str) -> str:
    """A text that Markdown leaves as it is."""
    text = " ".join(sentence.split()).replace("\\", "\\\\")
    for sign in "`*_[]|":
        text = text.replace(sign, f"\\{sign}")
    return html.escape(text, quote=False)
