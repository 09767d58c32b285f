"""Tables of records: as text that fits a terminal, as Markdown with all columns, as csv with a number in a cell."""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from sst2.data.csv_cells import to_cell
from sst2.utils.console import Fit, fitted_table, table

Record = dict[str, Any]  # text, int, float or None by name; the names are the columns of the csv


@dataclass(frozen=True)
class Column:
    """A column for people, made of one value of a record or of several.

    Attributes:
        title: its name.
        show: what it has for a record.
        fit: how it may be fitted to a terminal.
    """

    title: str
    show: Callable[[Record], str]
    fit: Fit = Fit()


@dataclass(frozen=True)
class Table:
    """Records of the same names, and the columns that people see of them."""

    records: list[Record]
    columns: list[Column]

    @property
    def rows(self) -> list[list[str]]:
        """The cells that people see, below the names of their columns."""
        rows = [[column.show(record) for column in self.columns] for record in self.records]
        return [[column.title for column in self.columns], *rows]

    def markdown(self) -> str:
        """All columns, in Markdown."""
        return table(self.rows, markdown=True)

    def fitted(self, width: int) -> tuple[str, list[str]]:
        """The columns that fit a terminal, as text; and the names of the others."""
        return fitted_table(self.rows, [column.fit for column in self.columns], width)

    def csv(self) -> str:
        """All values, in full precision: a cell has one number, a text that no spreadsheet calculates, or nothing."""
        return as_csv([[*self.records[0]], *([*record.values()] for record in self.records)])


def as_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Rows of numbers and texts as csv in which a spreadsheet calculates nothing."""
    stream = StringIO()
    csv.writer(stream, lineterminator="\n").writerows([map(_cell, row) for row in rows])
    return stream.getvalue()


def text(name: str) -> Callable[[Record], str]:
    """Shows a value as it is; nothing if there is none."""
    return lambda record: word(record[name])


def figure(name: str, digits: int, sign: str = "") -> Callable[[Record], str]:
    """Shows a number with so many digits behind the point."""
    return lambda record: _figure(record[name], digits, sign)


def interval(low: str, high: str, digits: int, sign: str = "") -> Callable[[Record], str]:
    """Shows the ends of an interval."""
    return lambda record: " to ".join(
        _figure(record[name], digits, sign) for name in (low, high) if record[name] is not None
    )


def spread(mean: str, deviation: str, digits: int) -> Callable[[Record], str]:
    """Shows a mean ± its standard deviation, which one value does not have."""
    return lambda record: " ± ".join(
        _figure(record[name], digits) for name in (mean, deviation) if record[name] is not None
    )


def plain(value: Any) -> Any:
    """A setting's value as a record has it: a number, or text."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value) if isinstance(value, bool) else value


def word(value: Any) -> str:
    """A setting's value for people."""
    value = plain(value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _figure(value: float | None, digits: int, sign: str = "") -> str:
    return "" if value is None else f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # no -0


def _cell(value: Any) -> Any:
    return to_cell(value) if isinstance(value, str) else value
