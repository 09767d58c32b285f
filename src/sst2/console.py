"""Standard output as commands print to it: whatever the terminal can show, and as long as anybody reads."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from sst2.errors import UserError

EXIT_NO_READER = 141  # what a shell says of programs that SIGPIPE has ended


@contextmanager
def standard_output() -> Iterator[None]:
    """Around a command. Characters that the terminal's encoding lacks are spelled out: `\\xb1`.

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


def say(text: str) -> None:
    """Print a line or several. Raises as `give_up`."""
    try:
        print(text)
    except OSError as error:
        give_up(error)


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
