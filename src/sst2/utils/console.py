"""Standard output as commands print to it: whatever the terminal can show, and as long as anybody reads.

Nothing heavy is imported here: signals must be caught before the seconds that importing torch takes.
"""

import io
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from sst2.utils.errors import UserError

EXIT_NO_READER = 141  # what a shell says of programs that SIGPIPE has ended
WIDTH = 1 << 20  # columns of a table's longest line


@contextmanager
def standard_output() -> Iterator[None]:
    r"""Around a command. Characters that the terminal's encoding lacks are spelled out: `\xb1`.

    Raises:
        UserError: standard output cannot be written.
        SystemExit: its reader has gone, as behind `| head`: the command ends without a word.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except BrokenPipeError as error:
        give_up(error)
    finally:
        flush()


def keep_off_standard_output(logger: str) -> None:
    """Have a library's logger write to standard error, also where the library is imported later.

    DeepSpeed's writes to standard output, which is for what a command prints.
    """

    def redirect(_: logging.LogRecord) -> bool:  # which a logger asks before its handlers
        for handler in logging.getLogger(logger).handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                handler.setStream(sys.stderr)
        return True

    logging.getLogger(logger).addFilter(redirect)


def say(text: str) -> None:
    """Print a line or several. Raises as `give_up`."""
    try:
        print(text)
    except OSError as error:
        give_up(error)


def table(rows: Iterable[Sequence[str]], markdown: bool = False) -> str:
    """Rows as columns of even width, the first row their names: never cut or wrapped, whatever they are printed to.

    Args:
        rows: of cells.
        markdown: whether there are bars between the columns, as in Markdown, or spaces.
    """
    from rich.box import MARKDOWN
    from rich.console import Console
    from rich.table import Table

    names, *lines = ([cell.replace("|", "\\|") if markdown else cell for cell in row] for row in rows)
    box, padding = (MARKDOWN, (0, 1)) if markdown else (None, (0, 2, 0, 0))
    drawn = Table(*names, box=box, padding=padding, pad_edge=markdown)
    for line in lines:
        drawn.add_row(*line)
    text = io.StringIO()
    plain = Console(
        file=text, width=WIDTH, color_system=None, markup=False, emoji=False, force_terminal=False, force_jupyter=False
    )
    plain.print(drawn)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())


def flush() -> None:
    """Write what was printed, so that it fails here and not when the interpreter ends. Raises as `give_up`."""
    try:
        if sys.stdout is not None:  # it is where the process was started without one
            sys.stdout.flush()
    except OSError as error:
        give_up(error)


def give_up(error: OSError) -> NoReturn:
    """Raises SystemExit where nobody reads standard output, UserError where it cannot be written for another reason."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in buffers goes nowhere, and without complaint
    if isinstance(error, BrokenPipeError):
        sys.exit(EXIT_NO_READER)
    raise UserError(f"standard output cannot be written ({error.strerror}): name another place, or mend this one")


def reserve_standard_descriptors() -> None:
    """Open nothing in place of the input and outputs that the job was started without, as by `>&-`.

    Else the next file or socket gets such a number, and what a library prints goes there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one


def wants_color(descriptor: int) -> bool:
    """Whether what is written there may be colored: to a terminal, unless NO_COLOR is set (no-color.org)."""
    return os.isatty(descriptor) and not os.environ.get("NO_COLOR")
