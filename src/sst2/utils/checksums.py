"""SHA-256 sums of a folder's files: listed in its manifest, and verified."""

import errno
import hashlib
import json
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1


class DamagedFolderError(Exception):
    """The folder is not what was once written. The message says what is wrong with it."""


def write_manifest(folder: Path) -> None:
    """List every file of a folder with its size and SHA-256 in `manifest.json`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {str(path.relative_to(folder)): describe_file(path) for path in paths}
    content = json.dumps({"format": FORMAT, "files": files}, indent=2) + "\n"
    (folder / MANIFEST).write_text(content, encoding="utf-8")


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


def describe_file(file: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file, as they stand in a manifest."""
    digest, block = hashlib.sha256(), bytearray(1 << 24)  # long blocks: between two of them Python's lock is contended
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            digest.update(memoryview(block)[:count])
        return {"size": stream.tell(), "sha256": digest.hexdigest()}


def _require_file(path: Path) -> int:
    """The size of a file in bytes. Raises OSError where it is a folder, a pipe or a device, which may have no end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a file")
    return status.st_size
