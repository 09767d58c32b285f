"""Folders that are complete or absent, whatever happens while they are written.

The files are written under a hidden name, listed with size and SHA-256 in `manifest.json`, brought to disk, and put in
place by one rename. Nothing here knows what is in them.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from sst2.utils.checksums import write_manifest
from sst2.utils.errors import disk_error
from sst2.utils.file_system import fsync
from sst2.utils.removal import REPLACED, UNFINISHED, discard, hidden_name


def write_atomic_folder(place: Path, write_files: Callable[[Path], object]) -> None:
    """Write a folder, in place of the one that may be there. `write_files` gets a folder to write all files into.

    Raises:
        OSError: what the disk has answered, whatever library was writing; what was at `place` before is still there.
    """
    unfinished = hidden_name(place, UNFINISHED)
    try:
        unfinished.mkdir(parents=True)
        write_files(unfinished)
        write_manifest(unfinished)
        commit(unfinished, place)
    except Exception as error:
        discard(unfinished)
        if (disk := disk_error(error)) is not None and disk is not error:
            raise disk from error
        raise


def commit(unfinished: Path, place: Path) -> None:
    """Bring a folder and all that is in it to disk, and rename it to its place."""
    for path in (*unfinished.rglob("*"), unfinished):
        fsync(path)
    replaced = None
    if os.path.lexists(place):  # written once more: a run resumed from an earlier step passes here again
        replaced = _move_away(place)
    try:
        os.rename(unfinished, place)
    except OSError:
        if replaced:
            os.rename(replaced, place)
        raise
    for folder in (place.parent, place.parent.parent):  # both may be new
        fsync(folder)
    if replaced:
        discard(replaced)


def _move_away(place: Path) -> Path | None:
    """Rename what is at `place`, from where `recover` brings it back after a kill. Returns the new name."""
    replaced = hidden_name(place, REPLACED)
    try:
        os.rename(place, replaced)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        discard(place)  # in a lower layer of overlay: it can be deleted, but not renamed
        return None
    return replaced
