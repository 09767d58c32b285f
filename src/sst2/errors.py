"""How a run ends: the exit codes, and the exceptions that lead to them.

Everything else that is raised is a bug of the project and keeps its traceback.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_USER_ERROR = 2
EXIT_DIVERGED = 3


class UserError(Exception):
    """A mistake of the user. The message is one line: the flag or file, what is wrong with it, and the way out."""


class TrainingDivergedError(Exception):
    """Loss or gradients stayed non-finite for too long. The message names the last good checkpoint."""


@contextmanager
def exit_codes(program: str, report: bool = True) -> Iterator[None]:
    """Turn the project's exceptions into one line on stderr and an exit code.

    Args:
        program: name to put before the message.
        report: whether this process prints. One process per node does, else every rank repeats the same line.

    Raises:
        SystemExit: with code 2 for `UserError` and 3 for `TrainingDivergedError`.
    """
    try:
        yield
    except (UserError, TrainingDivergedError) as error:
        if report:
            message = " ".join(str(error).split())  # library messages quoted in it may span lines
            print(f"{program}: error: {message}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_DIVERGED)
