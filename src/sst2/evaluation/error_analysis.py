"""Error analysis: tables of misclassified sentences, and of those whose prediction has changed, in Markdown.

Of two classes a table has the probability of the class 1. Of more it has what the sentence was taken for, and how sure
the model was of that.
"""

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sst2.data.splits import Split

ROWS = 10  # of a table


def most_confident_mistakes(split: "Split", probabilities: np.ndarray) -> str:
    """The mistakes that the model is surest of, by its (sentences, classes) probabilities."""
    are_two = probabilities.shape[1] == 2
    confidence = np.abs(probabilities[:, 1] - 0.5) if are_two else probabilities.max(axis=1)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != split.labels)
    lines = [f"**{len(wrong)} of {len(split)} sentences are classified wrongly.**", ""]
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:ROWS]
    if len(wrong) and are_two:
        header = "label", f"probability of {_cell(split.label_names[1])}", "sentence"
        rows = ((_label(split, row), f"{probabilities[row, 1]:.3f}", split.sentences[row]) for row in worst)
        lines += _table(header, rows)
    elif len(wrong):
        taken = ((_label(split, row), _told(split, probabilities[row]), split.sentences[row]) for row in worst)
        lines += _table(("label", "prediction, probability", "sentence"), taken)
    return "\n".join(lines)


def changed_sides(split: "Split", before: np.ndarray, now: np.ndarray) -> str:
    """The sentences that are classified otherwise than at the evaluation before, those that changed most first.

    `before` and `now` are (sentences, classes) probabilities, then and now.
    """
    predicted = now.argmax(axis=1)
    changed = np.flatnonzero(before.argmax(axis=1) != predicted)
    right = predicted[changed] == split.labels[changed]
    became_wrong = int((~right & (before.argmax(axis=1)[changed] == split.labels[changed])).sum())
    lines = [f"**{int(right.sum())} sentences became right, {became_wrong} became wrong.**", ""]
    are_two = now.shape[1] == 2
    changes = np.abs(now - before)[:, 1] if are_two else np.abs(now - before).max(axis=1)
    most = changed[np.argsort(-changes[changed], kind="stable")][:ROWS]
    if len(changed) and are_two:
        header = "label", f"probability of {_cell(split.label_names[1])} before", "now", "sentence"
        rows = (
            (_label(split, row), f"{before[row, 1]:.3f}", f"{now[row, 1]:.3f}", split.sentences[row]) for row in most
        )
        lines += _table(header, rows)
    elif len(changed):
        told = (
            (_label(split, row), _told(split, before[row]), _told(split, now[row]), split.sentences[row])
            for row in most
        )
        lines += _table(("label", "prediction, probability before", "now", "sentence"), told)
    return "\n".join(lines)


def _told(split: "Split", probabilities: np.ndarray) -> str:
    """What a sentence was taken for, and how surely."""
    return f"{_cell(split.label_names[int(probabilities.argmax())])}, {probabilities.max():.3f}"


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
