"""Labelled sentences out of files, hub data sets and saved folders, each one checked.

Every source becomes a stream of records that know where they stand, so that one check serves all of them and a mistake
is named by file and row.
"""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from sst2.data.mapped_dataset import mapped_dataset, with_labels
from sst2.data.records import UNLABELLED, Columns, Record, dataset_records, file_records
from sst2.utils.errors import UserError, quoted

if TYPE_CHECKING:
    from datasets import Dataset

NUMBERS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "-1": UNLABELLED, "-1.0": UNLABELLED, "": None}
SST2 = Columns()


def read_file(path: str, labels_required: bool, columns: Columns = SST2) -> "Dataset":
    """Read one csv, tsv, json lines or parquet file.

    Args:
        path: the file, in a format of `file_records`.
        labels_required: whether a row without a label is a mistake (training and validation) or not (test).
        columns: names of its columns and labels.

    Returns:
        The columns `sentence` and `label`: 0 negative, 1 positive, -1 unknown.

    Raises:
        UserError: a missing column, unknown label, empty or non-UTF-8 sentence, broken row or empty file; or there is
            no room for temporary files.
    """
    records = file_records(path, labels_required, columns)
    return _require_rows(mapped_dataset(_checked(records, labels_required, columns)), path)


def read_dataset(dataset: "Dataset", name: str, labels_required: bool, columns: Columns = SST2) -> "Dataset":
    """Check one split of a `datasets.Dataset`; its sentences stay where they are.

    Returns:
        As `read_file`.

    Raises:
        UserError: as `read_file`.
    """
    checked = _checked(dataset_records(dataset, name, labels_required, columns), labels_required, columns)
    labels = np.fromiter((label for _, label in checked), np.int8)
    sentences = dataset.select_columns([columns.sentence]).rename_columns({columns.sentence: "sentence"})
    return _require_rows(with_labels(sentences, labels), name)


def _require_rows(dataset: "Dataset", source: str) -> "Dataset":
    if not len(dataset):
        raise UserError(f"{source} holds no sentences: give a file with at least one row below the header")
    return dataset


def _checked(records: Iterable[Record], labels_required: bool, columns: Columns) -> Iterator[tuple[str, int]]:
    """Sentences and labels of the records. Raises UserError at the first that cannot be used; it names its place."""
    for record in records:
        yield checked_sentence(record), _checked_label(record, labels_required, columns.label_names)


def checked_sentence(record: Record) -> str:
    """The sentence of a record.

    Raises:
        UserError: it is empty, or no text in UTF-8.
    """
    if not isinstance(record.sentence, str):
        raise UserError(f"{record.place}: the sentence is {quoted(record.sentence)}, not text: mend or remove the row")
    try:
        record.sentence.encode("utf-8")  # files are read with surrogates in place of broken bytes
    except UnicodeEncodeError as error:
        number = ord(record.sentence[error.start])
        if 0xDC80 <= number <= 0xDCFF:
            reason = f"is not UTF-8 (byte 0x{number - 0xDC00:x}): convert the file, e.g. with iconv"
        else:  # out of JSON, whose escapes can spell it
            reason = f"holds half a character (\\u{number:x} alone): mend or remove the row"
        raise UserError(f"{record.place}: the sentence {reason}") from None
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
    accepted = _accepted(names, are_numbers)
    raise UserError(
        f"{record.place}: label {quoted(label)} is unknown: give {accepted}, or name the classes by --label_names"
    )


def _accepted(names: tuple[str, ...], are_numbers: bool) -> str:
    return " or ".join(names) if are_numbers else f"0 or {names[0].lower()}, 1 or {names[1].lower()}"
