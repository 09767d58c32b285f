"""Deleting files and folders also where the file system refuses some of it.

NFS keeps a file that somebody reads (ENOTEMPTY), a copy of a read-only folder cannot be emptied before its mode is
changed (EACCES), and overlay does not rename a folder of an image's lower layer (EXDEV). What stays is never a reason
to fail: it lies under a hidden name, and a later start tries again.
"""

import os
import shutil
from contextlib import suppress
from itertools import count
from pathlib import Path

UNFINISHED, REPLACED, REMOVED = "unfinished", "replaced", "removed"  # what a kill may leave: .NAME.unfinished
SUFFIXES = (UNFINISHED, REPLACED, REMOVED)


def discard(path: Path) -> str:
    """Delete a file, a link (never what it points to), or a folder with all that is in it.

    Returns:
        Why something of it is still there; empty if nothing is.
    """
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return ""
        shutil.rmtree(path)
        return ""
    except OSError as error:
        if not path.is_dir():
            return str(error.strerror)
    _make_writable(path)
    shutil.rmtree(path, ignore_errors=True)  # all that can be deleted
    try:
        path.rmdir()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return str(error.strerror)
    return ""


def hidden_name(place: Path, suffix: str) -> Path:
    """A free name beside `place`, such as `.NAME.unfinished`. What an earlier start has left under it is deleted."""
    for number in count():  # a number where something stays
        path = place.with_name(f".{place.name}.{number}.{suffix}" if number else f".{place.name}.{suffix}")
        discard(path)
        if not os.path.lexists(path):
            return path
    raise AssertionError


def put_aside(place: Path) -> Path:
    """Rename `place` to a hidden name, so that nothing half deleted ever bears its own.

    Returns:
        The new name, to be discarded; `place` itself where the file system cannot rename it.
    """
    aside = hidden_name(place, REMOVED)
    try:
        os.rename(place, aside)
    except OSError:
        return place
    return aside


def leftovers(place: Path) -> list[Path]:
    """What kills have left beside `place` under its hidden names."""
    names = [f".{place.name}.{number}{suffix}" for suffix in SUFFIXES for number in ("", "[0-9]*.")]
    return [path for name in names for path in sorted(place.parent.glob(name))]


def _make_writable(folder: Path) -> None:
    with suppress(OSError):
        folder.chmod(0o700)
    for parent, names, _ in os.walk(folder):
        for name in names:
            with suppress(OSError):
                if not (path := Path(parent, name)).is_symlink():
                    path.chmod(0o700)
