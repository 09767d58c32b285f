"""Labeled sentences out of files, hub data sets and saved folders, each one checked.

Every source becomes a stream of records that know where they stand, so that one check serves all of them and a mistake
is named by file and row.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from sst2.config.class_names import MAX_CLASSES, canonical, in_words, is_mistyped
from sst2.config.flag_groups import LABEL_NAMES
from sst2.data.file_formats import UNLABELED, Columns, Record, dataset_records, file_records, named_classes
from sst2.data.mapped_dataset import mapped_dataset
from sst2.utils.errors import UserError, quoted, shortened

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

SST2 = Columns()
ANY_CLASSES = SST2._replace(label_names=())  # of which none is known
OFTEN = 20  # rows of a class, beside which a label that occurs once and is a letter off is a slip
_WORDS_OF_SST2 = {"0", "1", *LABEL_NAMES}
_INTEGER = re.compile(r"-?\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(E[+-]?\d+)?|NAN|[+-]?INF(INITY)?")


def read_file(path: str, labels_required: bool, columns: Columns = SST2) -> "Dataset":
    """Read one csv, tsv, json lines or parquet file.

    A row without a label is a mistake in training and validation, where `labels_required`, and not in a test.

    Returns:
        The columns `sentence` and `label`: the number of the class in `columns.label_names`, -1 unknown.

    Raises:
        UserError: a missing column, unknown label, empty or non-UTF-8 sentence, broken row or empty file; or there is
            no room for temporary files.
    """
    records = file_records(path, labels_required, columns)
    return _require_rows(mapped_dataset(_checked(records, labels_required, columns), columns.label_names), path)


def read_dataset(dataset: "Dataset", name: str, labels_required: bool, columns: Columns = SST2) -> "Dataset":
    """Read one split of a `datasets.Dataset`, whatever format it was saved with. Returns and raises as `read_file`.

    The result is a copy: training outlives that somebody writes the folder of the original anew.
    """
    records = dataset_records(dataset.with_format(None), name, labels_required, columns)
    return _require_rows(mapped_dataset(_checked(records, labels_required, columns), columns.label_names), name)


def with_classes(columns: Columns, training: "str | Dataset", name: str) -> Columns:
    """The columns with the classes of the training data, which it is looked through for if no flag has named them.

    A `ClassLabel` names its classes in their order. Otherwise they are the labels that occur: 0 and 1, NEGATIVE and
    POSITIVE are SST-2's; three integers or more from 0 or 1, without a gap, stand in their order; names are sorted.

    Args:
        columns: with the names that `--label_names` gives, or none.
        training: path of a file, or a data set.
        name: of the source, for messages.

    Raises:
        UserError: the labels are no such classes; it names the first row with one that does not fit.
    """
    if columns.label_names:
        return columns
    if named := named_classes(training, columns):
        words = {_word(name) for name in named}
        if len(words) < len(named) or len(words) < 2 or "" in words:
            raise UserError(
                f"{name}: its ClassLabel names {shortened(in_words(named))}, which are not two or more different names "
                "(in upper or lower case): name its classes otherwise"
            )
        is_sst2 = words in ({"0", "1"}, {*LABEL_NAMES})
        names = LABEL_NAMES if is_sst2 else tuple(map(str.strip, named))
        return columns._replace(label_names=names, named_by="" if is_sst2 else name)
    records = (
        file_records(training, True, columns)
        if isinstance(training, str)
        else dataset_records(training.with_format(None), name, True, columns)
    )
    first, counts = _labels_among(records, name)
    names = _classes_among(first, name)
    _require_no_slip(first, counts)
    is_sst2 = names == LABEL_NAMES
    return columns._replace(label_names=names, are_numbered=is_sst2, named_by="" if is_sst2 else name)


def _labels_among(records: Iterable[Record], source: str) -> tuple[dict[str, Record], Counter[str]]:
    """The first record with each label, as it is compared, in order of appearance; and how many have it.

    Rows without a label are a mistake that is found later. Names of one class that are written in several ways are
    told: they might be two.
    """
    first: dict[str, Record] = {}
    counts: Counter[str] = Counter()
    told: set[str] = set()
    for record in records:
        if not isinstance(record.label, str | int | float | None):
            raise _unknown(record, ANY_CLASSES)
        word = str(int(record.label)) if isinstance(record.label, bool) else _word(record.label)
        if word not in ("", str(UNLABELED)):
            counts[word] += 1
            known = first.setdefault(word, record)
            is_name = word not in _WORDS_OF_SST2 and not _NUMBER.fullmatch(word)
            if is_name and word not in told and str(record.label).strip() != str(known.label).strip():
                told.add(word)
                logger.warning(
                    "%s: label %s is taken for the class that is %s in %s",
                    *(record.place, quoted(record.label), quoted(known.label), known.place),
                )
            if len(first) > MAX_CLASSES:
                raise UserError(
                    f"{record.place}: label {quoted(record.label)} is one more than the {MAX_CLASSES} classes that a "
                    f"run may have: name the column of classes in {source} by --label_column"
                )
    return first, counts


def _require_no_slip(first: dict[str, Record], counts: Counter[str]) -> None:
    """Warn of a label that occurs once beside frequent ones. Raises UserError: it is one of them, mistyped."""
    often = [word for word, count in counts.items() if count >= OFTEN]
    for word in [word for word, count in counts.items() if count == 1 and often]:
        record = first[word]
        meant = next((other for other in often if is_mistyped(word, other)), None)
        if meant is not None:
            raise UserError(
                f"{record.place}: label {quoted(record.label)} occurs once, and {quoted(first[meant].label)} "
                f"{counts[meant]} times: fix the row, or name all classes by --label_names if it is one of its own"
            )
        logger.warning("%s: label %s occurs once: a class is learned from many", record.place, quoted(record.label))


def _classes_among(first: dict[str, Record], source: str) -> tuple[str, ...]:
    """The classes that these labels are, each given with the first record that has it. Raises as `with_classes`."""
    words = list(first)
    if set(words) <= _WORDS_OF_SST2:
        return LABEL_NAMES
    if all(map(_INTEGER.fullmatch, words)):
        start = 0 if "0" in first else 1
        end = next(number for number in range(start, start + len(words) + 1) if str(number) not in first)
        numbers = tuple(map(str, range(start, end)))
        known = Columns(label_names=numbers) if len(numbers) > 2 else ANY_CLASSES
        odd = [word for word in words if word not in (numbers if len(numbers) > 2 else ("0", "1"))]
        if odd:
            raise _unknown(first[odd[0]], known)
        return numbers
    numbers_among = [word for word in words if _NUMBER.fullmatch(word)]
    others = [word for word in words if word not in numbers_among]
    if not others:  # some are no integers
        raise _unknown(first[next(word for word in words if not _INTEGER.fullmatch(word))], ANY_CLASSES)
    if numbers_among:  # what does not come first is what does not fit
        names = tuple(str(first[word].label).strip() for word in others)
        begin_with_number = words[0] in numbers_among
        odd_one = others[0] if begin_with_number else numbers_among[0]
        named = len(names) > 1 and not begin_with_number
        if not named:
            record = first[odd_one]
            what, others_are = ("a word", "numbers") if begin_with_number else ("a number", "words")
            raise UserError(
                f"{record.place}: label {quoted(record.label)} is {what}, and those before it are {others_are}: "
                "give one kind, or name the classes by --label_names"
            )
        raise _unknown(first[odd_one], Columns(label_names=names, are_numbered=False, named_by=source))
    if len(words) == 1:
        only = first[words[0]]
        raise UserError(
            f"{only.place}: label {quoted(only.label)} is the only one in {source}: add sentences of another class, or "
            "name the classes by --label_names"
        )
    return tuple(str(first[word].label).strip() for word in sorted(words))


def _require_rows(dataset: "Dataset", source: str) -> "Dataset":
    if not len(dataset):
        raise UserError(f"{source} holds no sentences: give a file with at least one row below the header")
    return dataset


def _checked(records: Iterable[Record], labels_required: bool, columns: Columns) -> Iterator[tuple[str, int]]:
    """Sentences and labels of the records. Raises UserError at the first that cannot be used; it names its place."""
    numbers = _numbers_of_labels(columns)
    for record in (rows := iter(records)):
        if _is_empty(record):
            raise UserError(f"{record.place}: the sentence is empty{_more_empty(rows)}: fix or remove such rows")
        yield checked_sentence(record), _checked_label(record, labels_required, columns, numbers)


def _is_empty(record: Record) -> bool:
    return isinstance(record.sentence, str) and not record.sentence.strip()


def _more_empty(rows: Iterator[Record]) -> str:
    """How many of the rows below are empty as well, as far as they can be read."""
    count = 0
    with suppress(UserError):
        for record in rows:
            count += _is_empty(record)
    return f", and so are {count} more below" if count else ""


def checked_sentence(record: Record) -> str:
    """The sentence of a record.

    Raises:
        UserError: it is empty, or no text in UTF-8.
    """
    if not isinstance(record.sentence, str):
        raise UserError(f"{record.place}: the sentence is {quoted(record.sentence)}, not text: fix or remove the row")
    try:
        record.sentence.encode("utf-8")  # files are read with surrogates in place of broken bytes
    except UnicodeEncodeError as error:
        number = ord(record.sentence[error.start])
        if 0xDC80 <= number <= 0xDCFF:
            reason = f"is not UTF-8 (byte 0x{number - 0xDC00:x}): convert the file, e.g. with iconv"
        else:  # out of JSON, whose escapes can spell it
            reason = f"holds half a character (\\u{number:x} alone): fix or remove the row"
        raise UserError(f"{record.place}: the sentence {reason}") from None
    if _is_empty(record):
        raise UserError(f"{record.place}: the sentence is empty: fix or remove the row")
    return record.sentence


def _numbers_of_labels(columns: Columns) -> dict[str, int]:
    """The number of the class that a label, as it is compared, stands for."""
    numbers = {str(number): number for number in range(len(columns.label_names))}
    named = {_word(name): number for number, name in enumerate(columns.label_names)}
    return named | (numbers if _have_numbers(columns) else {})


def _have_numbers(columns: Columns) -> bool:
    """Whether 0, 1 and so on stand for classes: where they are names, they mean what these say, or nothing."""
    numbers = {"-1", *map(str, range(len(columns.label_names)))}
    return columns.are_numbered and numbers.isdisjoint(map(_word, columns.label_names))


def _checked_label(record: Record, required: bool, columns: Columns, numbers: dict[str, int]) -> int:
    word = _word(record.label)
    if word not in numbers and isinstance(record.label, bool):
        word = str(int(record.label))
    if word in numbers:
        return numbers[word]
    if word not in ("", str(UNLABELED)):
        raise _unknown(record, columns)
    if required:
        lacks = "there is no label" if word == "" else f"label {UNLABELED} stands for none"
        raise UserError(f"{record.place}: {lacks}: give {_accepted(columns)}, or remove the row")
    return UNLABELED


def _unknown(record: Record, columns: Columns) -> UserError:
    way_out = "or name the classes by --label_names"
    if columns.named_by == "--label_names":
        way_out = "or fix --label_names"
    elif columns.named_by:
        way_out = f"the classes of {columns.named_by}, {way_out}"
    return UserError(f"{record.place}: label {quoted(record.label)} is unknown: give {_accepted(columns)}, {way_out}")


def _accepted(columns: Columns) -> str:
    """The labels of the classes, for a message."""
    names = columns.label_names
    if not names:
        return "names, or integers from 0 or 1 without a gap"
    if not _have_numbers(columns):
        return shortened(in_words(names, "or"))
    return shortened(", ".join(f"{number} or {name.lower()}" for number, name in enumerate(names)))


def _word(label: object) -> str:
    """A label as it is compared: 1.0 is 1, as which a column of numbers is written where a label is missing."""
    return canonical(re.sub(r"^(-?\d+)\.0+$", r"\1", "" if label is None else str(label).strip()))
