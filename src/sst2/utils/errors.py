"""How a run ends: the exit codes, and the exceptions that lead to them.

Everything else that is raised is a bug of the project and keeps its traceback. With SST2_TRACEBACK=1 in the environment
a one-line error shows its traceback as well.
"""

import errno
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from sst2.utils.redaction import redact

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_DIVERGED = 3
EXIT_STOPPED = os.EX_TEMPFAIL  # 75, which sysexits.h describes as: try again later

GO_ON = "--resume_from_checkpoint auto goes on from the last checkpoint"


class WaysOut(NamedTuple):
    """What a program can offer where a machine lacks something. Nothing is said of what is empty."""

    memory: str = "end other programs, or take a machine that has more"
    disk: str = ""
    lost_process: str = ""


OF_TRAINING = WaysOut(
    "lower --per_device_train_batch_size (with --global_batch_size the steps stay the same), "
    "--per_device_eval_batch_size or --max_length",
    "checkpoints are whole, and --resume_from_checkpoint auto goes on from the last",
    GO_ON,
)


class UserError(Exception):
    """A mistake of the user. The message is one line: the flag or file, what is wrong with it, and the way out."""


class LocalError(UserError):
    """A mistake that strikes one process and perhaps no other, as a full disk of one node does."""


class TrainingDivergedError(Exception):
    """Loss or gradients stayed non-finite for too long. The message names the last good checkpoint."""


class StopRequestedError(Exception):
    """Somebody asked the run to stop. The message says who, and where it will go on.

    Attributes:
        checkpoint: from which it will; None where there is nothing to go on from.
    """

    checkpoint: Path | None = None

    def __str__(self) -> str:
        way_on = f": --resume_from_checkpoint auto goes on from {self.checkpoint}" if self.checkpoint else ""
        return f"{super().__str__()}{way_on}"


class FinishedError(Exception):
    """There is nothing left to do. The message says where the results are."""


class LostProcessError(Exception):
    """A process of the job is not there. The message says which; it is empty where another process says it."""


SECONDS_FOR_OTHERS = 10.0  # in which the process that speaks for a node comes to the same mistake, if it does
MAX_QUOTED = 400  # characters of a library's message
TRACEBACK = "SST2_TRACEBACK"
EXIT_CODES = {
    UserError: EXIT_USER_ERROR,
    LocalError: EXIT_USER_ERROR,
    TrainingDivergedError: EXIT_DIVERGED,
    StopRequestedError: EXIT_STOPPED,
    FinishedError: 0,
    LostProcessError: EXIT_FAILED,
}


# What disks, and the network file systems among them, answer when they cannot be read or written any more.
DISK_ERRORS = {
    number
    for name in "EIO ENOSPC EDQUOT EROFS ESTALE EFBIG ENODEV ENXIO EREMOTEIO ENOTCONN ESHUTDOWN ENOLCK".split()
    if (number := getattr(errno, name, None)) is not None
}


def shortened(text: str, most: int = 100) -> str:
    """So many characters of a text at most."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def quoted(value: object) -> str:
    """A value of the user's as a message shows it: on one line, and not all of a long one."""
    return shortened(repr(value))


def leave_at_once(code: int) -> NoReturn:
    """End the process without the interpreter's tidying up.

    That takes a second, in which a preempted job may be killed, and with several processes it may never end: gloo's
    destructor, which holds Python's lock, waits for its thread, which waits for the lock (torch 2.13).
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):  # one is None where the job was started with `>&-`
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def end_from_thread(code: int, message: str) -> NoReturn:
    """End the process, whatever its main thread waits for. The message is one line; nothing is printed if it is empty.

    Where nobody reads stderr any more, printing may wait as well: it is given five seconds.
    """
    if message:
        line = f"{os.path.basename(sys.argv[0])}: {message}"  # noqa: PTH119 (as argparse has it)
        printing = threading.Thread(target=print_line, args=(line,), daemon=True)
        printing.start()
        printing.join(5)
    os._exit(code)


def is_lost_process(error: BaseException | None) -> bool:
    """Whether torch says that another process of the job is gone, or did not answer."""
    # gloo's messages name its source files
    return "/gloo/" in str(error) or type(error).__name__ == "DistBackendError"


def lost_process(text: str, way_out: str = GO_ON) -> str:
    """What to print of that."""
    said = f"another process is gone, or did not answer in time ({text}): its own output says why"
    return f"{said}; {way_out}" if way_out else said


@contextmanager
def local_errors() -> Iterator[None]:
    """Around what each process does by itself: a mistake that it meets there is a `LocalError`."""
    try:
        yield
    except UserError as error:
        raise LocalError(str(error)) from error


@contextmanager
def exit_codes(
    program: str,
    rank: int | None = None,
    report: bool = True,
    leave: Callable[[int], object] = sys.exit,
    ways_out: WaysOut = WaysOut(),  # noqa: B008 (immutable)
) -> Iterator[None]:
    """Turn the project's exceptions, and what a machine may lack, into one line on stderr and an exit code.

    Args:
        program: name to put before the message.
        rank: number of this process, for what strikes one process alone; None where there is but one.
        report: whether this process prints what all of them raise. One process per node does; another one prints a
            `LocalError` unless it is ended within ten seconds, as launchers do when that one has left.
        leave: ends the process with the code: 0 if nothing was raised; that of `EXIT_CODES`; 2 for want of memory or
            disk space; 1 for a lost process in one line, and for anything else with its traceback.
        ways_out: what the user may do in this program where the machine lacks something.
    """
    try:
        yield
        code = 0
    except tuple(EXIT_CODES) as error:
        message, is_error = "", not isinstance(error, StopRequestedError | FinishedError)
        if isinstance(error, LocalError) and not report:
            _wait_for_the_end()
            message = f"{program}: error: rank {rank} on {socket.gethostname()}: {error}"
        elif (report or isinstance(error, LostProcessError)) and str(error):
            message = f"{program}: {'error: ' * is_error}{error}"
        print_error(error, message)
        code = EXIT_CODES[type(error)]
    except Exception as error:
        code, line = _misfortune(error, ways_out)
        if line:
            print_error(error, f"{program}: error: {'' if rank is None else f'rank {rank}: '}{line}")
        else:
            with suppress(OSError, ValueError):
                print(redact(traceback.format_exc()), end="", file=sys.stderr)
    leave(code)


def _wait_for_the_end() -> None:
    """Give the process that speaks for this node the time to say the same, and be ended without a word then."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(SECONDS_FOR_OTHERS)


def print_error(error: Exception, message: str) -> None:
    """Print a line, if it is not empty; before it the error's traceback, where SST2_TRACEBACK asks for that."""
    _print_traceback_if_asked(error)
    if message:
        print_line(message)


def print_line(message: str) -> None:
    """Print a message as one line on stderr, without passwords and tokens."""
    with suppress(OSError, ValueError):  # a full disk, a closed pipe: the exit code must come through
        # library messages quoted in it may span lines
        print(redact(" ".join(message.split())), file=sys.stderr, flush=True)


def first_line(error: BaseException) -> str:
    """What a library's exception says, for a message of one line: its type where it says nothing by itself."""
    lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    if len(lines) > 1 and lines[0].endswith(":"):  # the reason comes after it
        lines[0] += f" {lines[1]}"
    said = shortened(lines[0], MAX_QUOTED) if lines else ""
    return said if said and isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {said}".strip(" :")


def _print_traceback_if_asked(error: Exception) -> None:
    if os.environ.get(TRACEBACK, "") in ("", "0"):
        return
    link: BaseException | None = error
    while link is not None:
        link.__suppress_context__ = False  # `raise … from None` keeps the cause out of sight
        link = link.__cause__ or link.__context__
    with suppress(OSError, ValueError):
        print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def _misfortune(error: Exception, ways_out: WaysOut) -> tuple[int, str]:
    """Exit code and words for what a bug is not to blame for; no words for anything else."""
    text = str(error)
    if is_out_of_memory(error):
        said = text.splitlines()[0] if text else type(error).__name__
        return EXIT_USER_ERROR, f"out of memory ({said}): {ways_out.memory}"
    disk = disk_error(error)
    if disk is not None:
        return EXIT_USER_ERROR, broken_disk(disk, ways_out.disk)
    if is_lost_process(error):
        return 1, lost_process(text, ways_out.lost_process)
    return 1, ""


def broken_disk(error: OSError, advice: str = OF_TRAINING.disk) -> str:
    """What to print of the error of a disk or a path."""
    way_out = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "see to that disk or path"
    return "; ".join(filter(None, [f"{error}: {way_out}", advice]))


def no_room(error: OSError) -> LocalError:
    """The error to raise where the folder for temporary files is full or absent."""
    folder = f" in {tempfile.tempdir}" if tempfile.tempdir else ""
    return LocalError(
        f"no temporary file can be written{folder} ({error.strerror or error}): make room, or name a folder that has "
        "some in the environment variable TMPDIR"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory is full."""
    # torch.OutOfMemoryError goes by its name, since this module must not import torch; a CPU has a message only.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


def disk_error(error: BaseException) -> OSError | None:
    """The error of a disk or a path that is behind an exception; None where it is something else.

    Libraries hide it: torch.save raises another error while it handles this one, and those written in Rust, as
    safetensors and tokenizers, put its number into the message of an exception of their own.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and (seen.errno in DISK_ERRORS or (seen.errno and seen.filename is not None)):
            return seen
        if in_rust := re.search(r"\(os error (\d+)\)", str(seen)):
            return OSError(int(in_rust[1]), os.strerror(int(in_rust[1])))
        wraps = isinstance(seen, OSError | RuntimeError)  # anything else is a bug of its own, whenever it came
        seen = (seen.__cause__ or seen.__context__) if wraps else None
    return None
