"""Rows of files and data sets, one after another, each with the place where it stands; their values are not checked."""

import csv
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from sst2.config.flag_groups import LABEL_NAMES
from sst2.data.csv_cells import texts_of  # whose module also lets fields of csv be of any length
from sst2.utils.errors import UserError, quoted, shortened
from sst2.utils.text_files import format_of, is_stream, open_text

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

UNLABELED = -1
READ_BATCH = 10_000  # rows converted from Arrow at a time: bounds memory, large enough to be fast
ROW_NUMBERS = ("", "id", "idx", "index")  # columns that nobody would take for labels
LONG_NAME = 40  # characters: more than a column's name has, fewer than most sentences have


class Columns(NamedTuple):
    """Where a source has what, and how it calls the classes 0, 1 and so on (in upper or lower case).

    `label` is None where labels are not asked for. Numbers stand for the classes as well, if they `are_numbered` and no
    name is a number. `named_by` says where the classes have their names from, for messages: empty if SST-2's.
    """

    sentence: str = "sentence"
    label: str | None = "label"
    label_names: tuple[str, ...] = LABEL_NAMES
    are_numbered: bool = True
    named_by: str = ""


class Record(NamedTuple):
    """One row as it was read: where it stands, and its raw values."""

    place: str
    sentence: Any
    label: Any


def file_records(path: str, labels_required: bool, columns: Columns, may_be_text: bool = False) -> Iterator[Record]:
    """The rows of a file: csv, tsv, json lines or parquet by its suffix, text files also compressed.

    A tsv is read as IANA defines it, as GLUE's are: without quoting. A pipe without a suffix is csv, tsv or json lines
    by its first line.

    Args:
        path: the file.
        labels_required: whether a column of labels must be there.
        columns: their names.
        may_be_text: whether a pipe whose first line is no header may be a text with a sentence a line.

    Raises:
        UserError: at the first row that cannot be read.
    """
    format = format_of(path)
    if format == ".parquet":
        yield from _parquet_records(path, labels_required, columns)
        return
    with open_text(path) as file:
        lines: Iterator[str] = file
        if not format and is_stream(path):
            first = next(file, "")
            format, lines = _format_of_pipe(path, first, columns, may_be_text), chain([first] if first else [], file)
        if format == ".txt":
            yield from text_records(lines, path)
        elif format in (".csv", ".tsv"):
            yield from _csv_records(lines, path, format == ".tsv", labels_required, columns)
        else:
            yield from _json_records(lines, path, labels_required, columns)


def text_records(lines: Iterable[str], path: str) -> Iterator[Record]:
    """A sentence a line."""
    for number, line in enumerate(lines, start=1):
        yield Record(f"{path} line {number}", line.rstrip("\r\n"), None)


def dataset_records(dataset: "Dataset", name: str, labels_required: bool, columns: Columns) -> Iterator[Record]:
    """The rows of one split of a `datasets.Dataset`.

    Raises:
        UserError: a column is missing.
    """
    present = _columns_to_read(dataset.column_names, name, labels_required, columns)
    names = named_classes(dataset, columns)
    yield from _arrow_records(dataset.select_columns(present).iter(READ_BATCH), name, names, columns)


def _arrow_records(
    batches: Iterable[dict[str, list[Any]]], source: str, names: list[str], columns: Columns
) -> Iterator[Record]:
    """Classes that have names in the source go by these; a number that no class has stays a number."""
    label_column = columns.label or ""
    row = 0
    for batch in batches:
        sentences = batch[columns.sentence]
        for sentence, label in zip(sentences, batch.get(label_column, [None] * len(sentences)), strict=True):
            row += 1
            is_named = isinstance(label, int) and 0 <= label < len(names)
            yield Record(f"{source} row {row}", sentence, names[label] if is_named else label)


def named_classes(source: "str | Dataset", columns: Columns) -> list[str]:
    """What the numbers of the label column stand for, where a file or data set that `datasets` has written says so.

    Raises:
        UserError: the file is no parquet, as its name says.
    """
    if not isinstance(source, str):
        return list(getattr(source.features.get(columns.label or ""), "names", []))
    if format_of(source) != ".parquet":
        return []
    import pyarrow.parquet

    try:
        return _class_names(pyarrow.parquet.read_schema(source).metadata, columns.label)
    except (OSError, ValueError) as error:
        raise UserError(f"{source} cannot be read as parquet: {error}") from None


def _format_of_pipe(path: str, line: str, columns: Columns, may_be_text: bool) -> str:
    """The format of what has no suffix, by its first line.

    Raises:
        UserError: it may be a table under other names as well as a text, and only the user knows which.
    """
    if line.startswith(("{", "[")):
        return ".jsonl"
    if columns.sentence in next(csv.reader([line]), []):
        return ".csv"
    is_tsv = "\t" in line
    if not may_be_text or (is_tsv and columns.sentence in line.rstrip("\r\n").replace('"', "").split("\t")):
        return ".tsv" if is_tsv else ".csv"
    if is_tsv or "," in line:
        raise UserError(
            f"{path} has no column {columns.sentence!r} in its first line {quoted(line.rstrip())}: name the column by "
            "--sentence_column, or give a text with a sentence a line as standard input, without --file"
        )
    return ".txt"


def _columns_to_read(present: list[str], source: str, labels_required: bool, columns: Columns) -> list[str]:
    """Raises UserError: one is missing. Warns where a column under another name may hold the labels."""
    _require_columns(present, source, labels_required, columns)
    others = [name for name in present if name != columns.sentence and name.lower() not in ROW_NUMBERS]
    if columns.label is not None and columns.label not in present and others:
        logger.warning(
            "%s has no column %r, only %s: its sentences are predicted and not scored; --label_column names another",
            *(source, columns.label, shortened(", ".join(map(repr, present)))),
        )
    return [name for name in (columns.sentence, columns.label) if name in present]


def _require_columns(present: list[str], source: str, labels_required: bool, columns: Columns) -> None:
    wanted = {"sentence": columns.sentence} | ({"label": columns.label} if columns.label is not None else {})
    if not present:
        raise UserError(
            f"{source} is empty: give a header with {' and '.join(wanted.values())}, and a row for every sentence"
        )
    for name in wanted.values():
        if present.count(name) > 1:
            raise UserError(f"{source} has {present.count(name)} columns {name!r}: keep one")
    for what, name in wanted.items():
        if name not in present and (what == "sentence" or labels_required):
            raise UserError(
                f"{source} has no column {name!r}, only {shortened(', '.join(map(repr, present)))}: name the columns "
                f"so, or give --{what}_column"
            )


def _csv_records(
    lines: Iterator[str], path: str, tabs: bool, labels_required: bool, columns: Columns
) -> Iterator[Record]:
    # strict: a stray quote is an error at its line, not a field that swallows the rest of the file
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    first = next(lines, "")
    _require_separator(first, path, tabs, columns)
    of_row: list[str] = []  # the lines of the row that is being read
    rows = csv.reader(_remembered(chain([first] if first else [], lines), of_row), **dialect)
    with _true_reasons(rows, path, of_row):
        header = next(rows, [])
        if tabs and f'"{columns.sentence}"' in header:
            raise UserError(f"{path} line 1: {_QUOTED_TABS}")
        _require_header(header, path, "\t" if tabs else ",", columns)
        _columns_to_read(header, path, labels_required, columns)
        of_row.clear()
        text_of = str if tabs else texts_of(header)
        for fields in rows:
            place = f"{path} line {rows.line_num}"
            of_row.clear()
            if not fields:
                continue  # a blank line
            if tabs and any(map(_is_quoted, fields)):
                raise UserError(f"{place}: {_QUOTED_TABS}")
            if len(fields) != len(header):
                hint = "" if tabs else ": put sentences with commas in double quotes"
                if tabs and any(field.startswith('"') for field in fields):
                    hint = f": {_QUOTED_TABS}"
                raise UserError(f"{place} has {len(fields)} fields where the header has {len(header)}{hint}")
            row = dict(zip(header, map(text_of, fields), strict=True))
            yield Record(place, row[columns.sentence], row.get(columns.label or ""))


_QUOTED_TABS = (
    "fields stand in double quotes, as pandas writes them, but a tsv has no quoting (IANA, and GLUE's files): write it "
    "as csv, or with quoting=csv.QUOTE_NONE and without tabs and line breaks in sentences"
)


def _is_quoted(field: str) -> bool:
    """Whether a tsv's field is what a writer that quotes makes of a text with quotes: all of them doubled inside."""
    inside = field[1:-1]
    return len(field) > 2 and field[0] == field[-1] == '"' and '""' in inside and '"' not in inside.replace('""', "")


def _remembered(lines: Iterable[str], memory: list[str]) -> Iterator[str]:
    for line in lines:
        memory.append(line)
        yield line


@contextmanager
def _true_reasons(rows: Any, path: str, of_row: list[str]) -> Iterator[None]:
    """Around the reading of csv: what the module complains of is told by its cause, and where that begins."""
    try:
        yield
    except csv.Error as error:
        line, reason = rows.line_num, str(error)
        if any('\\"' in text for text in of_row):
            line -= len(of_row) - 1
            reason = 'a quote within a sentence is written \\": double it instead, as in "a ""fine"" film"'
        elif "unexpected end" in reason:
            line -= len(of_row) - 1
            reason = "a double quote is opened in this row and never closed"
        raise UserError(f"{path} line {line} is not valid csv: {reason}") from None


def _require_header(header: list[str], path: str, separator: str, columns: Columns) -> None:
    """Raises UserError: the first line is a row."""
    names = {"0", "1", "-1", *(name.upper() for name in columns.label_names or LABEL_NAMES)}
    looks_like_a_row = any(field.strip().upper() in names or len(field) > LONG_NAME for field in header)
    if columns.sentence not in header and looks_like_a_row:
        wanted = [name for name in (columns.sentence, columns.label) if name is not None]
        raise UserError(
            f"{path} has no header, its first line is the row {quoted(separator.join(header))}: put "
            f"{quoted(separator.join(wanted))} above it"
        )


def _require_separator(line: str, path: str, tabs: bool, columns: Columns) -> None:
    """Raises UserError: what separates the columns in the first line is not what the suffix of the file says."""
    own = line.rstrip("\r\n").split("\t") if tabs else next(csv.reader([line]), [])
    if columns.sentence in own:
        return
    names = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
    for separator in [one for one in names if one in line and one != ("\t" if tabs else ",")]:
        if columns.sentence in map(_unquoted, line.split(separator)):
            raise UserError(
                f"{path} line 1 has {names[separator]} between its columns: save the file with "
                f"{'tabs' if tabs else 'commas'}, as its name says"
            )


def _unquoted(field: str) -> str:
    return field.strip().strip('"')


def _json_records(lines: Iterable[str], path: str, labels_required: bool, columns: Columns) -> Iterator[Record]:
    is_first = True
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is not JSON ({error}): give one object a line") from None
        if not isinstance(row, dict):
            raise UserError(f"{place} is not a JSON object: give one object a line")
        _require_columns([*row], place, labels_required, columns)
        if is_first:
            _columns_to_read([*row], path, labels_required, columns)
        is_first = False
        yield Record(place, row[columns.sentence], row.get(columns.label or ""))


def _parquet_records(path: str, labels_required: bool, columns: Columns) -> Iterator[Record]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            present = _columns_to_read(schema.names, path, labels_required, columns)
            batches = (batch.to_pydict() for batch in file.iter_batches(READ_BATCH, columns=present))
            yield from _arrow_records(batches, path, _class_names(schema.metadata, columns.label), columns)
    except (OSError, ValueError) as error:  # pyarrow's, and UTF-8's, are ValueErrors
        raise UserError(f"{path} cannot be read as parquet: {error}") from None


def _class_names(metadata: Any, column: str | None) -> list[str]:
    """What the numbers of a column stand for, where `datasets` has written the file and knew it."""
    try:
        names: list[str] = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
        return names
    except (LookupError, TypeError, ValueError):
        return []
