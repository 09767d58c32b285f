"""Folders that are complete or absent, whatever happens while they are written.

The files are written under a hidden name, listed with size and SHA-256 in `manifest.json`, brought to disk, and put in
place by one rename. Nothing here knows what is in them.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from sst2.utils.errors import disk_error
from sst2.utils.file_system import fsync
from sst2.utils.removal import REPLACED, UNFINISHED, discard, hidden_name

MANIFEST = "manifest.json"
FORMAT = 1


class DamagedFolderError(Exception):
    """The folder is not what was once written. The message says what is wrong with it."""


def write_atomic_folder(place: Path, write_files: Callable[[Path], object]) -> None:
    """Write a folder, in place of the one that may be there. `write_files` gets a folder to write all files into.

    Raises:
        OSError: what the disk has answered, whatever library was writing; what was at `place` before is still there.
    """
    unfinished = hidden_name(place, UNFINISHED)
    try:
        unfinished.mkdir(parents=True)
        write_files(unfinished)
        files = {str(file.relative_to(unfinished)): describe_file(file) for file in _files(unfinished)}
        manifest = {"format": FORMAT, "files": files}
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        commit(unfinished, place)
    except Exception as error:
        discard(unfinished)
        if (disk := disk_error(error)) is not None and disk is not error:
            raise disk from error
        raise


def verify_folder(place: Path, but: Collection[str] = ()) -> None:
    """Compare every file with the manifest, byte for byte; those named in `but` are left out.

    Raises:
        DamagedFolderError: a file is missing, has another size or other content, or there is no manifest, or one that
            lists nothing, or something else than files of this folder.
    """
    try:
        _require_file(place / MANIFEST)
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise DamagedFolderError(f"{MANIFEST} has format {manifest['format']}, this version reads {FORMAT}")
        files = {str(name): dict(description) for name, description in manifest["files"].items()}
    except FileNotFoundError:
        raise DamagedFolderError(f"{MANIFEST if place.is_dir() else 'it'} is missing") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFolderError(f"{MANIFEST} cannot be read: {error}") from None
    if not files:
        raise DamagedFolderError(f"{MANIFEST} lists no files")
    for name, expected in files.items():
        if name in but:
            continue
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DamagedFolderError(f"{MANIFEST} lists {name}, which is not in the folder")
        try:
            size = _require_file(place / name)
            if size != expected.get("size"):
                raise DamagedFolderError(f"{name} has {size} bytes instead of {expected.get('size')}")
            if describe_file(place / name) != expected:
                raise DamagedFolderError(f"{name} has another SHA-256 than {MANIFEST} says")
        except (OSError, ValueError) as error:  # the latter: a name with a null byte
            raise DamagedFolderError(f"{name} cannot be read: {getattr(error, 'strerror', error)}") from None


def damage_of(place: Path) -> str:
    """What `verify_folder` finds wrong with a folder, in words; empty if nothing is."""
    try:
        verify_folder(place)
    except DamagedFolderError as error:
        return str(error)
    return ""


def _require_file(path: Path) -> int:
    """The size of a file in bytes. Raises OSError where it is a folder, a pipe or a device, which may have no end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a file")
    return status.st_size


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


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def describe_file(file: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file, as they stand in a manifest."""
    digest, block = hashlib.sha256(), bytearray(1 << 24)  # long blocks: between two of them Python's lock is contended
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            digest.update(memoryview(block)[:count])
        return {"size": stream.tell(), "sha256": digest.hexdigest()}
