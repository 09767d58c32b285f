"""Checkpoints on disk: complete or absent, whatever happens while they are written.

A checkpoint is a folder `step-00000123`. Its files are written under a hidden name, listed with size and SHA-256 in
`manifest.json`, brought to disk, and put in place by one rename. Nothing here knows what is in the files.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sst2.errors import UserError
from sst2.run_folder import sync

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"step-(\d{8})")
_UNFINISHED, _REPLACED, _REMOVED = "unfinished", "replaced", "removed"  # what a kill may leave: .step-00000123.removed


class DamagedCheckpointError(Exception):
    """The folder is not what was once written. The message says what is wrong with it."""


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in order of their steps. Unfinished ones have another name and are not seen."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir())


def newest_checkpoint(folder: Path) -> Path | None:
    return max(list_checkpoints(folder), default=None)


def write_checkpoint(place: Path, write_files: Callable[[Path], None]) -> None:
    """Write a checkpoint, in place of the one that may be there.

    Args:
        write_files: writes all files into the folder that it is given.

    Raises:
        OSError: the disk is full, or worse; whatever was at `place` before is still there.
    """
    unfinished = _hidden(place, _UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        write_files(unfinished)
        files = {file.name: _describe(file) for file in sorted(unfinished.iterdir())}
        manifest = {"format": FORMAT, "files": files}
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _commit(unfinished, place)
    except Exception as error:
        # torch.save says "unexpected pos 8000960 vs 8000912"
        is_full = unfinished.exists() and shutil.disk_usage(unfinished).free < 1 << 20
        shutil.rmtree(unfinished, ignore_errors=True)
        if is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def adopt_checkpoints(place: Path, folder: Path, best_step: int | None) -> None:
    """Copy a checkpoint of another run, and the best one beside it, into this run's folder: it stands on its own."""
    if place.resolve().parent == folder.resolve():
        return
    best = place.with_name(checkpoint_name(best_step)) if best_step is not None else place
    for source in {place, best}:
        try:
            verify_checkpoint(source)
        except DamagedCheckpointError as error:
            logger.warning("not copying %s: %s", source, error)
            continue
        unfinished = _hidden(folder / source.name, _UNFINISHED)
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished)
        _commit(unfinished, folder / source.name)


def verify_checkpoint(place: Path) -> None:
    """Compare every file with the manifest, byte for byte.

    Raises:
        DamagedCheckpointError: a file is missing, has another size or other content, or there is no manifest.
    """
    try:
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise DamagedCheckpointError(f"{MANIFEST} has format {manifest['format']}, this version reads {FORMAT}")
        files = {str(name): dict(description) for name, description in manifest["files"].items()}
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{MANIFEST if place.is_dir() else 'it'} is missing") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{MANIFEST} cannot be read: {error}") from None
    for name, expected in files.items():
        try:
            size = (place / name).stat().st_size
            if size != expected.get("size"):
                raise DamagedCheckpointError(f"{name} has {size} bytes instead of {expected.get('size')}")
            if _describe(place / name) != expected:
                raise DamagedCheckpointError(f"{name} has another SHA-256 than {MANIFEST} says")
        except OSError as error:
            raise DamagedCheckpointError(f"{name} cannot be read: {error.strerror}") from None


def find_latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None where there is none at all. Says which it passes over, and why.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    found = list_checkpoints(folder)
    for place in reversed(found):
        try:
            verify_checkpoint(place)
            return place
        except DamagedCheckpointError as error:
            logger.warning("passing over %s: %s", place, error)
    if found:
        raise UserError(
            f"--resume_from_checkpoint auto: all {len(found)} checkpoints in {folder} are damaged: "
            "remove them to start from the beginning"
        )
    return None


def rotate(folder: Path, newest: Path, limit: int, best_step: int | None) -> None:
    """Keep the `limit` newest checkpoints up to `newest`, and the best."""
    best = checkpoint_name(best_step) if best_step is not None else None
    for abandoned in [path for path in list_checkpoints(folder) if path.name > newest.name]:
        _remove(abandoned)  # of the way that the run took before it was resumed from an earlier step
    for old in [path for path in list_checkpoints(folder)[:-limit] if path.name != best]:
        _remove(old)


def recover(folder: Path) -> None:
    """Finish what a kill has interrupted, and remove what it has left behind."""
    for replaced in folder.glob(f".step-*.{_REPLACED}"):
        place = folder / replaced.name[1:].removesuffix(f".{_REPLACED}")
        if not place.exists():
            os.rename(replaced, place)
    for suffix in (_UNFINISHED, _REPLACED, _REMOVED):
        for leftover in folder.glob(f".step-*.{suffix}"):
            shutil.rmtree(leftover)


def _commit(unfinished: Path, place: Path) -> None:
    for path in (*unfinished.iterdir(), unfinished):
        sync(path)
    replaced = _hidden(place, _REPLACED)
    if place.exists():  # a run that was resumed from an earlier step passes here again
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(place, replaced)  # `recover` brings it back if the next line is never reached
    try:
        os.rename(unfinished, place)
    except OSError:
        if replaced.exists():
            os.rename(replaced, place)
        raise
    for folder in (place.parent, place.parent.parent):  # both may be new
        sync(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _remove(place: Path) -> None:
    """Delete a checkpoint under another name: a kill in the middle must not leave half of one under its own."""
    gone = _hidden(place, _REMOVED)
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(place, gone)
    shutil.rmtree(gone)


def _hidden(place: Path, suffix: str) -> Path:
    return place.with_name(f".{place.name}.{suffix}")


def _describe(file: Path) -> dict[str, Any]:
    digest, block = hashlib.sha256(), bytearray(1 << 24)  # long blocks: between two of them Python's lock is contended
    with open(file, "rb", buffering=0) as stream:
        while count := stream.readinto(block):
            digest.update(memoryview(block)[:count])
        return {"size": stream.tell(), "sha256": digest.hexdigest()}
