"""The checkpoints of a run: atomic folders `step-00000123`; the newest whole one is found, old ones are rotated."""

import json
import logging
import os
import re
import shutil
from functools import partial
from pathlib import Path

from sst2.runs.origin import ORIGIN
from sst2.utils.atomic_file import write_json
from sst2.utils.atomic_folder import commit, write_atomic_folder
from sst2.utils.checksums import MANIFEST, damage_of, describe_file
from sst2.utils.errors import UserError
from sst2.utils.removal import REMOVED, REPLACED, UNFINISHED, discard, hidden_name, put_aside

logger = logging.getLogger(__name__)

ABANDONED = "abandoned.json"  # beside the checkpoints: those that the run was taken back from
_NAME = re.compile(r"step-(\d{8})")


def checkpoint_name(step: int) -> str:
    """Name of the folder of the checkpoint after a step."""
    return f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in order of their steps. Unfinished ones have another name and are not seen."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir())


def own_checkpoints(folder: Path) -> list[Path]:
    """`list_checkpoints` without those that `abandon_later` has noted, unless there are no others any more."""
    there, abandoned = list_checkpoints(folder), _abandoned(folder)
    return [path for path in there if path not in abandoned] or there


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the run's highest step, whole or not; None where there is none."""
    return max(own_checkpoints(folder), default=None)


def abandon_later(place: Path | None, folder: Path) -> None:
    """Note which checkpoints are later than the one that a start was told to go on from, if that is the run's own.

    They stay until the first save has succeeded. A start that comes before it also goes on from `place`. The note has
    their manifests' SHA-256 as well, so that what is saved under one of their names does not count among them.
    """
    there = list_checkpoints(folder)
    own = [path for path in there if place is not None and path.resolve() == place.resolve()]
    if not own:
        return
    if later := {path.name: _digest(path) for path in there if path > own[0]}:
        write_json(folder / ABANDONED, later)
    else:
        discard(folder / ABANDONED)


def _abandoned(folder: Path) -> list[Path]:
    try:
        noted = dict(json.loads((folder / ABANDONED).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return []
    return [folder / name for name, digest in noted.items() if _digest(folder / name) == digest]


def _digest(place: Path) -> str:
    try:
        return str(describe_file(place / MANIFEST)["sha256"])
    except OSError:
        return "no manifest"


def last_good(folder: Path) -> str:
    """What the message of a checkpoint that could not be written ends with."""
    good = newest_checkpoint(folder)
    return f"the last good checkpoint is {good}" if good else "there is no earlier one"


def import_checkpoints(place: Path | None, folder: Path, step: int, best_step: int | None) -> None:
    """Copy a checkpoint of another run, and the best one beside it, into this run's folder: it stands on its own.

    Where the run has no checkpoints yet, all appears at once, with a note of where it comes from: a kill before leaves
    an empty run, a kill after it one that goes on from the copy.

    Args:
        place: the checkpoint that the run resumes from, of any name; None, or one of the run's own, is nothing to copy.
        folder: of this run's checkpoints.
        step: after which it was saved.
        best_step: of the best model so far.
    """
    sources = checkpoints_to_import(place, folder, step, best_step)
    if place is None or not sources:
        return
    target = folder if folder.exists() else hidden_name(folder, UNFINISHED)
    try:
        for name, source in sources.items():
            if damage := damage_of(source):
                logger.warning("not copying %s: %s", source, damage)
            else:
                write_atomic_folder(target / name, partial(copy_files, source))
        if target != folder:
            note = json.dumps({"checkpoint": str(place.resolve()), "named": os.path.abspath(place)})
            (target / ORIGIN).write_text(note + "\n", encoding="utf-8")
            commit(target, folder)
    finally:
        if target != folder:
            discard(target)


def checkpoints_to_import(place: Path | None, folder: Path, step: int, best_step: int | None) -> dict[str, Path]:
    """What `import_checkpoints` copies: the checkpoints by the names that they have in this run's folder."""
    if place is None or place.resolve() in [own.resolve() for own in list_checkpoints(folder)]:
        return {}
    sources = {checkpoint_name(step): place}
    if best_step is not None and best_step != step:
        best = checkpoint_name(best_step)
        beside = [place.with_name(best), place.resolve().with_name(best)]  # of a link, and of what it points to
        sources[best] = next((path for path in beside if path.is_dir()), beside[0])
    return sources


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder, at any depth."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def copy_files(source: Path, folder: Path) -> None:
    """Copy contents alone: the modes of a read-only copy would keep this run from removing it."""
    for file in [file for file in source.rglob("*") if file.is_file() and file != source / MANIFEST]:
        copy = folder / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def find_latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None where there is none at all. Says which it passes over, and why.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    found = own_checkpoints(folder)
    later = [path for path in list_checkpoints(folder) if path not in found]
    if later:
        logger.warning("%s: passing over %d later checkpoints, which the run was taken back from", folder, len(later))
    for place in reversed(found):
        damage = damage_of(place)
        if not damage:
            return place
        logger.warning("passing over %s: %s", place, damage)
    if later:
        raise UserError(
            f"--resume_from_checkpoint auto: in {folder}, all checkpoints are damaged but those that the run was taken "
            f"back from: give one of these to go on from, such as --resume_from_checkpoint {later[-1]}"
        )
    if found:
        raise UserError(
            f"--resume_from_checkpoint auto: all {len(found)} checkpoints in {folder} are damaged: "
            "remove them to start from the beginning"
        )
    return None


def rotate(folder: Path, newest: Path, limit: int, best_step: int | None) -> None:
    """Keep the `limit` newest checkpoints up to `newest`, and the best. One that cannot be deleted is warned of."""
    best = checkpoint_name(best_step) if best_step is not None else None
    try:
        earlier = _leftovers(folder, REMOVED)
        noted = _abandoned(folder)
        for path in list_checkpoints(folder):  # of the way that the run took before it was resumed from an earlier step
            if path.name > newest.name or (path in noted and path.name != newest.name):
                _remove(path)
        discard(folder / ABANDONED)
        for old in [path for path in list_checkpoints(folder)[:-limit] if path.name != best]:
            _remove(old)
        for leftover in earlier:  # whoever read its files may have closed them by now
            discard(leftover)
    except OSError as error:
        logger.warning("old checkpoints in %s cannot be removed: %s", folder, error)


def recover(folder: Path) -> None:
    """Finish what a kill has interrupted, and remove what it has left behind, as far as the file system lets it."""
    for replaced in _leftovers(folder, REPLACED):
        place = folder / replaced.name[1 : 1 + len(checkpoint_name(0))]
        if place.exists():
            _discard(replaced)
            continue
        try:
            os.rename(replaced, place)
        except OSError as error:
            logger.warning("%s cannot be renamed to %s (%s)", replaced, place.name, error.strerror)
    for leftover in (*_leftovers(folder, UNFINISHED), *_leftovers(folder, REMOVED)):
        _discard(leftover)


def _leftovers(folder: Path, suffix: str) -> list[Path]:
    return sorted(path for path in folder.glob(f".step-*.{suffix}") if _NAME.search(path.name))


def _remove(place: Path) -> None:
    """Delete a checkpoint under another name: a kill in the middle must not leave half of one under its own."""
    aside = put_aside(place)
    if aside == place:  # it goes under its own name: what stays of it must not pass for whole
        discard(place / MANIFEST)
    _discard(aside)


def _discard(path: Path) -> None:
    if reason := discard(path):
        logger.warning("%s cannot be removed (%s): it stays, which costs room", path, reason)
