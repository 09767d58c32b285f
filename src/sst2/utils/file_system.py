"""What file systems differ in: fsync, mode bits, locks. What a run can do without is warned of where it is missing."""

import errno
import fcntl
import logging
import math
import os
import re
import socket
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from sst2.utils.errors import UserError
from sst2.utils.waiting import wait_until

logger = logging.getLogger(__name__)

# How a file system says that it has no such operation. CIFS, VirtualBox and some FUSE mounts do for fsync of a folder.
_UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_LOCK_UNSUPPORTED = _UNSUPPORTED | {errno.ENOLCK, errno.EBADF}
FEATURES = ("fsync of folders", "mode bits", "locks")  # without which a run goes on, with a warning

_warned: set[tuple[str, int]] = set()  # what is missing, and on which device


class BestEffort:
    """Around the writing of a file that a run can do without: an error of the disk is warned of, and ends nothing.

    Attributes:
        is_lost: whether there was one. The file is to be left alone from then on, so that it has no gaps.
    """

    def __init__(self, name: str) -> None:
        self.is_lost = False
        self._name = name

    def __enter__(self) -> "BestEffort":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, OSError):
            self.lose(error)
        return isinstance(error, OSError)

    def lose(self, error: OSError) -> None:
        """Give the file up."""
        if not self.is_lost:
            self.is_lost = True
            logger.warning("%s cannot be written (%s): going on without it", self._name, error.strerror or error)


def fsync(path: Path) -> None:
    """Bring a file, or a folder's list of names, to disk.

    A folder that may be written below but not opened, as /scratch with mode 0711, and a file system without fsync are
    warned of once: then a crash of the host, not of the job, may undo what was written last.

    Raises:
        OSError: the disk could not write it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError as error:
        if not path.is_dir():
            raise
        warn_once("fsync", path, f"{path} cannot be opened to bring new names in it to disk", error)
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        warn_once("fsync", path, f"the file system of {path} has no fsync for it", error)
    finally:
        os.close(descriptor)


def copy_mode(file: Path, like: Path) -> None:
    """Let those read a file who may read another: safetensors makes files for their owner alone, whatever the umask.

    A file system that keeps no mode bits, as SMB and vfat, is warned of once.
    """
    try:
        file.chmod(stat.S_IMODE(like.stat().st_mode))
    except OSError as error:
        warn_once("mode bits", file, f"{file}: who may read it cannot be set", error)


def wait_for_lock(
    file: IO[Any],
    waiting: str,
    operation: int = fcntl.LOCK_EX,
    check_stop: Callable[[], object] = lambda: None,
    seconds: float = math.inf,
    no_locks: str = "",
) -> bool:
    """Take a lock that ends with the process, however that ends, when it is free.

    Args:
        file: open, on the file system in question.
        waiting: what to log where another process has the lock.
        operation: `fcntl.LOCK_EX`, or `fcntl.LOCK_SH` to share it.
        check_stop: called while waiting; what it raises ends the waiting.
        seconds: to wait at most.
        no_locks: the warning where the file system has no locks; by default, that it has none.

    Returns:
        False where the file system has no locks, which is warned of once.

    Raises:
        TimeoutError: another process has the lock.
    """
    has_said = False

    def take() -> bool:
        nonlocal has_said
        with suppress(BlockingIOError, PermissionError):  # some network file systems say the latter
            fcntl.flock(file, operation | fcntl.LOCK_NB)
            return True
        if not has_said:
            logger.info("%s", waiting)
            has_said = True
        check_stop()
        return False

    try:
        if not wait_until(take, seconds):
            raise TimeoutError
    except OSError as error:
        if error.errno not in _LOCK_UNSUPPORTED:
            raise
        message = no_locks or f"the file system of {file.name} has no locks"
        warn_once(no_locks or "locks", Path(file.name), message, error)
        return False
    return True


def warn_once(what: str, path: Path, message: str, error: OSError) -> None:
    """Warn, once for each file system, of `what` that of `path` lacks, and of the error by which it has said so."""
    with suppress(OSError):
        key = what, path.stat().st_dev
        if key in _warned:
            return
        _warned.add(key)
    logger.warning("%s (%s): going on without", message, error.strerror)


def missing_features(folder: Path) -> dict[str, str]:
    """What the file system of a folder lacks of `FEATURES`, and in which words it says so. For a folder of one's own.

    Raises:
        OSError: nothing can be written there at all.
    """
    missing = {}
    with tempfile.NamedTemporaryFile(prefix=".sst2-doctor-", dir=folder) as one, Path(one.name).open("rb") as other:
        probes = {
            "fsync of folders": lambda: _require_fsync(folder),
            "mode bits": lambda: _require_modes(Path(one.name)),
            "locks": lambda: _require_locks(one, other),
        }
        for feature in FEATURES:
            try:
                probes[feature]()
            except OSError as error:
                missing[feature] = error.strerror or str(error)
    return missing


def _require_fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_modes(file: Path) -> None:
    for mode in (0o640, 0o600):
        file.chmod(mode)
        if stat.S_IMODE(file.stat().st_mode) != mode:
            raise OSError("not kept")


def _require_locks(one: IO[Any], other: IO[Any]) -> None:
    fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with suppress(BlockingIOError, PermissionError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raise OSError("not held")


def expand_path(text: str) -> Path:
    """A path with ~ and variables such as $TMPDIR looked up on this node.

    Raises:
        UserError: a variable is not set.
    """
    path = os.path.expandvars(os.path.expanduser(text))
    if missing := re.search(r"\$\{?(\w+)", path):
        raise UserError(f"{text}: {missing[1]} is not set on {socket.gethostname()}: set it, or name a folder")
    return Path(path)
