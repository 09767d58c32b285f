"""The checkpoints of a run: sealed folders `step-00000123`, of which the newest whole one is found and old ones go."""

import logging
import os
import re
import shutil
from pathlib import Path

from sst2.errors import UserError
from sst2.sealed_folder import REPLACED, UNFINISHED, DamagedFolderError, commit, hidden, verify_sealed

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8})")
_REMOVED = "removed"  # what a kill may leave: .step-00000123.removed


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in order of their steps. Unfinished ones have another name and are not seen."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir())


def newest_checkpoint(folder: Path) -> Path | None:
    return max(list_checkpoints(folder), default=None)


def adopt_checkpoints(place: Path, folder: Path, best_step: int | None) -> None:
    """Copy a checkpoint of another run, and the best one beside it, into this run's folder: it stands on its own."""
    if place.resolve().parent == folder.resolve():
        return
    best = place.with_name(checkpoint_name(best_step)) if best_step is not None else place
    for source in {place, best}:
        try:
            verify_sealed(source)
        except DamagedFolderError as error:
            logger.warning("not copying %s: %s", source, error)
            continue
        unfinished = hidden(folder / source.name, UNFINISHED)
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished)
        commit(unfinished, folder / source.name)


def find_latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None where there is none at all. Says which it passes over, and why.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    found = list_checkpoints(folder)
    for place in reversed(found):
        try:
            verify_sealed(place)
            return place
        except DamagedFolderError as error:
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
    for replaced in folder.glob(f".step-*.{REPLACED}"):
        place = folder / replaced.name[1:].removesuffix(f".{REPLACED}")
        if not place.exists():
            os.rename(replaced, place)
    for suffix in (UNFINISHED, REPLACED, _REMOVED):
        for leftover in folder.glob(f".step-*.{suffix}"):
            shutil.rmtree(leftover)


def _remove(place: Path) -> None:
    """Delete a checkpoint under another name: a kill in the middle must not leave half of one under its own."""
    gone = hidden(place, _REMOVED)
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(place, gone)
    shutil.rmtree(gone)
