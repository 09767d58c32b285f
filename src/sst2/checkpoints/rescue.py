"""A checkpoint that its disk does not take: it is tried again, and then written somewhere else and named."""

import logging
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sst2.checkpoints.folders import copy_files
from sst2.utils.atomic_folder import write_atomic_folder
from sst2.utils.checksums import verify_folder

logger = logging.getLogger(__name__)

SECONDS_BEFORE_RETRIES = (1.0, 4.0)  # short enough for the grace time of a job that was asked to stop

WriteFiles = Callable[[Path], None]


class SaveError(Exception):
    """The checkpoint could not be written. The message says where, why, and where it is instead, if anywhere."""


def save_or_rescue(place: Path, write_files: WriteFiles, best: Path | None = None) -> None:
    """Write an atomic folder. Network disks have their moments: a failure is tried again after a while.

    Args:
        place: of the checkpoint, in a folder of its run's folder, which must be there.
        write_files: writes all files into the folder that it is given; may be called again.
        best: the checkpoint that the run will export; where `place` is written somewhere else, it is copied beside it.

    Raises:
        SaveError: all tries have failed. What was at `place` before is still there.
    """
    for pause in (*SECONDS_BEFORE_RETRIES, None):
        try:
            place.parent.parent.stat()  # a run's folder that is gone is not made anew, with nothing else of a run in it
            write_atomic_folder(place, write_files)
            return
        except Exception as error:
            if pause is None:
                raise SaveError(_rescue(place, error, write_files, best)) from error
            logger.warning("%s could not be written (%s): trying again in %g s", place.name, error, pause)
            time.sleep(pause)


def _rescue(place: Path, error: Exception, write_files: WriteFiles, best: Path | None) -> str:
    """Write the checkpoint somewhere else, and the best one beside it. Returns what to tell the user."""
    message = f"checkpoint {place} could not be written ({error}): make room or name another --output_dir"
    if rescued := _write_to_temporary(place.name, write_files):
        message += (
            f"; it is saved in {rescued} on {socket.gethostname()} instead: --resume_from_checkpoint with that folder, "
            "and another --output_dir, goes on from there"
        )
        if best is not None and best != place and not _copy_beside(rescued, best):
            message += f", with the best model so far if you copy {best} beside it before"
    return message


def _copy_beside(rescued: Path, best: Path) -> bool:
    try:
        verify_folder(best)
        write_atomic_folder(rescued.with_name(best.name), partial(copy_files, best))
        return True
    except Exception as error:
        logger.warning("%s cannot be copied to %s (%s)", best, rescued.parent, error)
        return False


def _write_to_temporary(name: str, write_files: WriteFiles) -> Path | None:
    """Write to a new folder in the host's own temporary one, $TMPDIR. Returns where, or None."""
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="sst2-rescued-"))
        write_atomic_folder(folder / name, write_files)
        return folder / name
    except Exception as error:
        logger.warning("nor can it be written to %s (%s)", folder or "a temporary folder", error)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        return None
