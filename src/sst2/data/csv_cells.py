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

PREDICTIONS = ("split", "row", "sentence", "label", "prediction", "probability_positive")  # of a run
ANSWERS = ("prediction", "probability_positive", "sentence")  # of python -m sst2.predict
ANSWERS_EXPLAINED = (*ANSWERS, "attributions")
_OWN_HEADERS = (PREDICTIONS, ANSWERS, ANSWERS_EXPLAINED)

_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last four are the first in full width
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def to_cell(text: str) -> str:
    """The text as a cell that no spreadsheet calculates."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def from_cell(cell: str) -> str:
    """The text that `to_cell` has made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def texts_of(header: Sequence[str]) -> Callable[[str], str]:
    """What gives back the text of a cell below this header: `from_cell` in the project's own files."""
    return from_cell if tuple(header) in _OWN_HEADERS else str
