"""Labeled sentences out of files, hub data sets and saved folders, each one checked.

Every source becomes a stream of records that know where they stand, so that one check serves all of them and a mistake
is named by file and row.
"""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sst2.data.file_formats import UNLABELED, Columns, Record, dataset_records, file_records
from sst2.data.mapped_dataset import mapped_dataset
from sst2.utils.errors import UserError, quoted

if TYPE_CHECKING:
    from datasets import Dataset

SST2 = Columns()


def read_file(path: str, labels_required: bool, columns: Columns = SST2) -> "Dataset":
    """Read one csv, tsv, json lines or parquet file.

    A row without a label is a mistake in training and validation, where `labels_required`, and not in a test.

    Returns:
        The columns `sentence` and `label`: 0 negative, 1 positive, -1 unknown.

    Raises:
        UserError: a missing column, unknown label, empty or non-UTF-8 sentence, broken row or empty file; or there is
            no room for temporary files.
    """
    records = file_records(path, labels_required, columns)
    return _require_rows(mapped_dataset(_checked(records, labels_required, columns)), path)


def read_dataset(dataset: "Dataset", name: str, labels_required: bool, columns: Columns = SST2) -> "Dataset":
    """Read one split of a `datasets.Dataset`, whatever format it was saved with. Returns and raises as `read_file`.

    The result is a copy: training outlives that somebody writes the folder of the original anew.
    """
    records = dataset_records(dataset.with_format(None), name, labels_required, columns)
    return _require_rows(mapped_dataset(_checked(records, labels_required, columns)), name)


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
    known, word = [_word(name) for name in names], _word(record.label)
    if word in known:
        return known.index(word)
    if isinstance(record.label, bool):
        word = str(int(record.label))
    are_numbers = not {"0", "1", "-1"}.isdisjoint(known)  # 0 and 1 then mean what the names say, or nothing
    if word in ("0", "1") and not are_numbers:
        return int(word)
    accepted = " or ".join(names) if are_numbers else f"0 or {names[0].lower()}, 1 or {names[1].lower()}"
    if word not in ("", str(UNLABELED)):
        raise UserError(
            f"{record.place}: label {quoted(record.label)} is unknown: give {accepted}, or name the classes by "
            "--label_names"
        )
    if required:
        raise UserError(f"{record.place}: there is no label: give {accepted}, or remove the row")
    return UNLABELED


def _word(label: object) -> str:
    """A label as it is compared: 1.0 is 1, as which a column of numbers is written where a label is missing."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", "" if label is None else str(label).strip().upper())
