"""Sentences to classify, one after another: from the command line, a file or standard input, each one checked."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sst2.errors import UserError
from sst2.reading import Columns, Record, checked_sentence, file_records
from sst2.settings import FILE_SUFFIXES

SUFFIXES = (".txt", *FILE_SUFFIXES)
CHUNK_CHARACTERS = 1 << 20  # a chunk of very long sentences ends early: what a process needs for it is bounded


def sentences_of(words: Sequence[str], file: str | None, column: str = "sentence") -> Iterator[str]:
    """The sentences that the command line names: its words, else those of the file, else of standard input.

    Args:
        column: of the sentences, in a file that has columns.

    Raises:
        UserError: at the first sentence that is empty, no UTF-8, or in a row that cannot be read, with its place; or at
            the end, where there was none.
    """
    source = "the command line" if words else file or "standard input"
    count = 0
    try:
        for record in _records(words, file, source, column):
            count += 1
            yield checked_sentence(record)
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}): give a file that you may read") from None
    if not count:
        raise UserError(f"{source} holds no sentences: give at least one")


def require_readable(file: str) -> None:
    """Raises UserError: it is no file, or of a kind that cannot be read."""
    if not Path(file).is_file():
        raise UserError(f"--file {file} {'is a folder' if Path(file).is_dir() else 'does not exist'}")
    if Path(file).suffix not in SUFFIXES:
        raise UserError(f"--file {file} must end in one of {' '.join(SUFFIXES)}")


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


def _records(words: Sequence[str], file: str | None, source: str, column: str) -> Iterator[Record]:
    if words:
        for number, word in enumerate(words, start=1):
            yield Record(f"sentence {number}", word, None)
    elif file and Path(file).suffix != ".txt":
        yield from file_records(file, labels_required=False, columns=Columns(sentence=column))
    else:  # standard input is read as files are, whatever the locale says of it
        with open(file or 0, encoding="utf-8-sig", errors="surrogateescape", closefd=bool(file)) as lines:
            is_typed = lines.isatty()
            for number, line in enumerate(lines, start=1):
                if is_typed and not line.strip():
                    continue  # Enter once too often
                yield Record(f"{source} line {number}", line.rstrip("\n"), None)
