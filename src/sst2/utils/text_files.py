"""Data files before anything in them is understood: format, compression, pipes, and whether they are UTF-8.

Nothing heavy is imported here, since flags that name files are checked at once.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from sst2.utils.errors import UserError

FILE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".bz2", ".xz")
_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}  # by first bytes
_UNREADABLE = {
    b"PK\x03\x04": "is a zip archive or a spreadsheet: unpack it, or save its table as csv",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: unpack it with zstd -d, or compress it with gzip",
    b"PAR1": "is a parquet file: let its name end in .parquet",
    b"\xff\xfe": "is UTF-16, not UTF-8: convert it, e.g. with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "is UTF-16, not UTF-8: convert it, e.g. with iconv -f UTF-16 -t UTF-8",
}


def format_of(file: str | Path) -> str:
    """The suffix that names the format, in lower case and without that of a compression: `.csv` of `A.CSV.gz`."""
    path = Path(file)
    if path.suffix.lower() in COMPRESSIONS:
        path = path.with_suffix("")
    return path.suffix.lower()


def is_stream(file: str | Path) -> bool:
    """Whether it can be read once only, and may have no suffix: a pipe, or standard input by its name in /dev."""
    return Path(file).is_fifo() or str(file).startswith(("/dev/stdin", "/dev/fd/", "/proc/self/fd/"))


def problem_of(file: str, suffixes: Sequence[str] = FILE_SUFFIXES, read_once: bool = False) -> str:
    """What is wrong with the name of a data file, in words that go on after it; nothing if it may be opened.

    Args:
        file: its name.
        suffixes: of the formats that may be.
        read_once: whether the program reads the file once, so that a pipe will do.
    """
    try:
        return _problem_of(file, suffixes, read_once)
    except OSError as error:  # a path that the file system does not take
        return f"cannot be used ({error.strerror}): give another path"


def _problem_of(file: str, suffixes: Sequence[str], read_once: bool) -> str:
    path = Path(file)
    if path.exists() and is_stream(file):
        return "" if read_once else "can be read once only, and every process and restart reads it: save it to a file"
    wanted = f"{' '.join(suffixes)}, with {' or '.join(COMPRESSIONS)} behind it if compressed"
    problems = {
        "is a folder": path.is_dir(),
        "does not exist": not path.exists(),
        "is a device, not a file": not path.is_file(),
        f"must end in one of {wanted}": format_of(path) not in suffixes,
        f"is parquet, which is compressed by itself: unpack the {path.suffix} file": format_of(path)
        == ".parquet"
        != path.suffix.lower(),
    }
    return next((problem for problem, applies in problems.items() if applies), "")


@contextmanager
def open_text(file: str | None) -> Iterator[TextIO]:
    """The text of a file, unpacked where its first bytes say that it is compressed, with its own ends of lines.

    Bytes that are no UTF-8 become lone surrogates, so that a mistake can be told with its row.

    Args:
        file: standard input if None.

    Raises:
        UserError: it cannot be opened or unpacked, or is no UTF-8 from the start; also from within the context.
    """
    name = file or "standard input"
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(open(file or 0, "rb", closefd=file is not None))
            start = raw.peek(8)
            if not start:  # a terminal would have to be ended once more
                yield io.StringIO()
                return
            opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
            content = stack.enter_context(opener(raw)) if opener else raw
            _require_text(name, content.peek(4096)[:4096])
            yield stack.enter_context(
                io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="")
            )
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{name} cannot be read ({error.strerror}): give a file that you may read") from None
        raise UserError(f"{name} cannot be unpacked ({error}): it is damaged or not complete") from None


def _require_text(name: str, start: bytes) -> None:
    for magic, reason in _UNREADABLE.items():
        if start.startswith(magic):
            raise UserError(f"{name} {reason}")
    if b"\0" in start:
        raise UserError(
            f"{name} holds zero bytes, so that it is no UTF-8 text: if it is UTF-16, convert it with "
            "iconv -f UTF-16LE -t UTF-8"
        )
