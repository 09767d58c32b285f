"""csv that spreadsheets may open: no cell of text is taken for a formula, and what was written is read back.

A spreadsheet runs what begins with = + - @ as a formula, and some skip a tab or a line break before it (OWASP, "CSV
Injection"). Such a text gets an apostrophe in front, which spreadsheets take for "this is text"; so does one that has
apostrophes before such a character, whence `from_cell` gives every text back. Numbers stay as they are.

In a file of anybody else's an apostrophe is part of the text: the project's own are known by their headers.
"""

import csv
import re
import sys
from collections.abc import Callable, Sequence

csv.field_size_limit(sys.maxsize)  # of the whole process: a sentence may be longer than the module's 131,072 characters

_OF_PREDICTIONS = ("split", "row", "sentence", "label", "prediction")  # of a run's predictions.csv
_PROBABILITY = "probability_"

_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last four are the first in full width
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def to_cell(text: str) -> str:
    """The text as a cell that no spreadsheet calculates."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def from_cell(cell: str) -> str:
    """The text that `to_cell` has made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def probability_columns(label_names: Sequence[str]) -> list[str]:
    """Names of the columns of probabilities: one for each class; of two, that of the positive one alone."""
    return [_PROBABILITY + name for name in (label_names if len(label_names) > 2 else ["positive"])]


def predictions_header(label_names: Sequence[str]) -> list[str]:
    """The columns of a run's predictions.csv."""
    return [*_OF_PREDICTIONS, *probability_columns(label_names)]


def answers_header(label_names: Sequence[str], top_k: int | None = None, explained: bool = False) -> list[str]:
    """The columns of `sst2 predict --format csv`, with the `top_k` likeliest classes in place of each one."""
    columns = probability_columns(label_names)
    if top_k is not None:
        columns = [column for rank in range(1, top_k + 1) for column in (f"class_{rank}", f"{_PROBABILITY}{rank}")]
    return ["prediction", *columns, "sentence", *(["attributions"] if explained else [])]


def texts_of(header: Sequence[str]) -> Callable[[str], str]:
    """What gives back the text of a cell below this header: `from_cell` in the project's own files."""
    return from_cell if _is_own(list(header)) else str


def _is_own(header: list[str]) -> bool:
    frames = (_OF_PREDICTIONS, ()), (("prediction",), ("sentence",)), (("prediction",), ("sentence", "attributions"))
    for first, last in frames:
        columns = header[len(first) : len(header) - len(last)]
        is_framed = header == [*first, *columns, *last]
        if is_framed and columns and all(column.startswith((_PROBABILITY, "class_")) for column in columns):
            return True
    return False
