"""Labelled sentences out of files, hub data sets and saved folders, each one checked.

Every source becomes a stream of records that know where they stand, so that one check serves all of them and a mistake
is named by file and row.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sst2.errors import UserError
from sst2.scratch import Scratch, blocks, spool
from sst2.sentences import Sentences, SentenceWriter
from sst2.settings import LABEL_NAMES

if TYPE_CHECKING:
    from datasets import Dataset

UNLABELLED = -1
NUMBERS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "-1": UNLABELLED, "-1.0": UNLABELLED, "": None}
READ_BATCH = 10_000  # rows converted from Arrow at a time: bounds memory, large enough to be fast


class Columns(NamedTuple):
    """Where a source has what, and how it calls the classes 0 and 1 (in upper or lower case)."""

    sentence: str = "sentence"
    label: str = "label"
    label_names: tuple[str, ...] = LABEL_NAMES


SST2 = Columns()


class Record(NamedTuple):
    """One row as it was read: where it stands, and its raw values."""

    place: str
    sentence: Any
    label: Any


@dataclass(eq=False)
class LabelledSentences:
    """Checked sentences of one split, and their labels.

    Attributes:
        sentences: the texts, as they were read.
        labels: (sentences,) int64; 0 negative, 1 positive, -1 unknown.
    """

    sentences: Sentences
    labels: np.ndarray

    @classmethod
    def of(cls, sentences: Iterable[str], labels: Iterable[int]) -> "LabelledSentences":
        """Raises UserError: no room for temporary files."""
        return cls(Sentences.of(sentences), np.fromiter(labels, np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelledSentences):
            return NotImplemented
        return self.sentences == other.sentences and np.array_equal(self.labels, other.labels)

    __hash__ = None  # type: ignore[assignment]  # none, as of a list

    def take(self, rows: np.ndarray | range) -> "LabelledSentences":
        """Those of these rows, in their order. Raises UserError: no room for temporary files."""
        labels = spool((self.labels[np.asarray(rows[block])] for block in blocks(len(rows))), "<i8")
        return LabelledSentences(self.sentences.take(rows), labels)


def read_file(path: str, labels_required: bool, columns: Columns = SST2) -> LabelledSentences:
    """Read one csv, tsv, json lines or parquet file.

    Args:
        path: the file; its suffix names the format. A tsv is read as IANA defines it, as GLUE's are: without quoting.
        labels_required: whether a row without a label is a mistake (training and validation) or not (test).
        columns: names of its columns and labels.

    Raises:
        UserError: a missing column, unknown label, empty or non-UTF-8 sentence, broken row or empty file.
    """
    return check_records(file_records(path, labels_required, columns), path, labels_required, columns)


def file_records(path: str, labels_required: bool, columns: Columns = SST2) -> Iterator[Record]:
    """The rows of a file as `read_file` takes it, one after another; their values are not checked yet.

    Raises:
        UserError: at the first row that cannot be read.
    """
    readers = {".csv": _csv_records, ".tsv": _csv_records, ".parquet": _parquet_records}
    return readers.get(Path(path).suffix, _json_records)(path, labels_required, columns)


def read_dataset(dataset: "Dataset", name: str, labels_required: bool, columns: Columns = SST2) -> LabelledSentences:
    """Read one split of a `datasets.Dataset`.

    Raises:
        UserError: as `read_file`.
    """
    _require_columns(dataset.column_names, name, labels_required, columns)
    return check_records(_dataset_records(dataset, name, columns), name, labels_required, columns)


def check_records(
    records: Iterable[Record], source: str, labels_required: bool, columns: Columns = SST2
) -> LabelledSentences:
    """Collect the records, or stop at the first that cannot be used.

    Raises:
        UserError: names the record's place; or there is no room for temporary files.
    """
    sentences, labels = SentenceWriter(), Scratch("<i8")
    for record in records:
        sentences.append(checked_sentence(record))
        labels.append(_checked_label(record, labels_required, columns.label_names).to_bytes(8, "little", signed=True))
    checked = LabelledSentences(sentences.finish(), labels.finish())
    if not len(checked):
        raise UserError(f"{source} holds no sentences: give a file with at least one row below the header")
    return checked


def checked_sentence(record: Record) -> str:
    """The sentence of a record.

    Raises:
        UserError: it is empty, or no text in UTF-8.
    """
    if not isinstance(record.sentence, str):
        raise UserError(f"{record.place}: the sentence is {record.sentence!r}, not text: mend or remove the row")
    try:
        record.sentence.encode("utf-8")  # files are read with surrogates in place of broken bytes
    except UnicodeEncodeError:
        raise UserError(f"{record.place}: the sentence is not UTF-8: convert the file, e.g. with iconv") from None
    if not record.sentence.strip():
        raise UserError(f"{record.place}: the sentence is empty: mend or remove the row")
    return record.sentence


def _checked_label(record: Record, required: bool, names: tuple[str, ...]) -> int:
    label = record.label
    if isinstance(label, float) and label.is_integer():  # as a column becomes where a label is missing
        label = int(label)
    elif isinstance(label, str):
        label = re.sub(r"^\s*(-?\d+)\.0+\s*$", r"\1", label)
    known = [name.upper() for name in names]
    word = "" if label is None else str(label).strip().upper()
    if word in known:
        return known.index(word)
    are_numbers = not NUMBERS.keys().isdisjoint(known)  # 0 and 1 then mean what the names say, or nothing
    if isinstance(label, str) and (not are_numbers or word in ("", "-1")):
        label = NUMBERS.get(word, label)
    if label in (None, UNLABELLED):
        if not required:
            return UNLABELLED
        raise UserError(f"{record.place}: there is no label: give {_accepted(names, are_numbers)}, or remove the row")
    if label in (0, 1) and not are_numbers:
        return int(label)
    raise UserError(
        f"{record.place}: label {label!r} is unknown: give {_accepted(names, are_numbers)}, or name the classes by "
        "--label_names"
    )


def _accepted(names: tuple[str, ...], are_numbers: bool) -> str:
    return " or ".join(names) if are_numbers else f"0 or {names[0].lower()}, 1 or {names[1].lower()}"


def _require_columns(present: Iterable[str], source: str, labels_required: bool, columns: Columns) -> None:
    present = list(present)
    wanted = {"sentence": columns.sentence, "label": columns.label}
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
                f"{source} has no column {name!r}, only {', '.join(map(repr, present))}: name the columns so, or give "
                f"--{what}_column"
            )


def _csv_records(path: str, labels_required: bool, columns: Columns) -> Iterator[Record]:
    tabs = Path(path).suffix == ".tsv"
    # strict: a stray quote is an error at its line, not a field that swallows the rest of the file
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file, **dialect)
        try:
            header = next(rows, [])
            _require_columns(header, path, labels_required, columns)
            for fields in rows:
                if not fields:
                    continue  # a blank line
                place = f"{path} line {rows.line_num}"
                if len(fields) != len(header):
                    hint = "" if tabs else ": put sentences with commas in double quotes"
                    raise UserError(f"{place} has {len(fields)} fields where the header has {len(header)}{hint}")
                row = dict(zip(header, fields, strict=True))
                yield Record(place, row[columns.sentence], row.get(columns.label))
        except csv.Error as error:
            raise UserError(f"{path} line {rows.line_num} is not valid csv: {error}") from None


def _json_records(path: str, labels_required: bool, columns: Columns) -> Iterator[Record]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path} line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place} is not JSON ({error}): give one object a line") from None
            if not isinstance(row, dict):
                raise UserError(f"{place} is not a JSON object: give one object a line")
            _require_columns(row, place, labels_required, columns)
            yield Record(place, row[columns.sentence], row.get(columns.label))


def _parquet_records(path: str, labels_required: bool, columns: Columns) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _require_columns(file.schema_arrow.names, path, labels_required, columns)
            present = [name for name in (columns.sentence, columns.label) if name in file.schema_arrow.names]
            row = 0
            for batch in file.iter_batches(READ_BATCH, columns=present):
                values = batch.to_pydict()
                labels = values.get(columns.label, [None] * len(batch))
                for sentence, label in zip(values[columns.sentence], labels, strict=True):
                    row += 1
                    yield Record(f"{path} row {row}", sentence, label)
    except (pyarrow.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as parquet: {error}") from None


def _dataset_records(dataset: "Dataset", name: str, columns: Columns) -> Iterator[Record]:
    present = [column for column in (columns.sentence, columns.label) if column in dataset.column_names]
    # what the numbers stand for, where it is said
    names: Any = getattr(dataset.features.get(columns.label), "names", None)
    row = 0
    for batch in dataset.select_columns(present).iter(READ_BATCH):
        labels = batch.get(columns.label, [None] * len(batch[columns.sentence]))
        for sentence, label in zip(batch[columns.sentence], labels, strict=True):
            row += 1
            is_named = names is not None and label not in (None, UNLABELLED)
            yield Record(f"{name} row {row}", sentence, names[label] if is_named else label)
