"""Inputs of `predict`: sentences from the command line, a file or standard input, each one checked."""

import os
from collections.abc import Iterable, Iterator, Sequence

from sst2.data.checked_rows import checked_sentence
from sst2.data.file_formats import Columns, Record, file_records, text_records
from sst2.utils.errors import UserError
from sst2.utils.text_files import open_text

CHUNK_CHARACTERS = 1 << 20  # a chunk of very long sentences ends early: what a process needs for it is bounded


def sentences_of(words: Sequence[str], file: str | None, column: str | None = None) -> Iterator[str]:
    """The sentences that the command line names: its words, else those of the file, else of standard input.

    `column` is that of the sentences, where the file has columns: `sentence` if None, and a pipe may then be a text.

    Raises:
        UserError: at the first sentence that is empty, no UTF-8, or in a row that cannot be read, with its place; or at
            the end, where there was none.
    """
    source = "the command line" if words else file or "standard input"
    count = 0
    for record in _records(words, file, source, column):
        count += 1
        yield checked_sentence(record)
    if not count:
        raise UserError(f"{source} holds no sentences: give at least one")


def count_sentences(file: str, column: str | None = None) -> int | None:
    """How many sentences a file holds, for the time that is left; None of a pipe, which can be read but once.

    Reading takes hundredths of the time of classifying. A mistake is answered where the sentences are read for that.
    """
    if not os.path.isfile(file) or file.startswith(("/dev/", "/proc/")):
        return None
    try:
        return sum(1 for _ in sentences_of([], file, column))
    except UserError:
        return None


def chunks(sentences: Iterable[str], size: int) -> Iterator[list[str]]:
    """So many sentences at a time, or fewer where they are very long; none of the lists is empty."""
    chunk: list[str] = []
    characters = 0
    for sentence in sentences:
        chunk.append(sentence)
        characters += len(sentence)
        if len(chunk) == size or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _records(words: Sequence[str], file: str | None, source: str, column: str | None) -> Iterator[Record]:
    if words:
        for number, word in enumerate(words, start=1):
            yield Record(f"sentence {number}", word, None)
    elif file:
        columns = Columns(label=None) if column is None else Columns(sentence=column, label=None)
        yield from file_records(file, labels_required=False, columns=columns, may_be_text=column is None)
    else:  # standard input is read as files are, whatever the locale says of it
        is_typed = os.isatty(0)
        with open_text(None) as lines:
            for record in text_records(lines, source):
                if is_typed and not record.sentence.strip():
                    continue  # Enter once too often
                yield record
