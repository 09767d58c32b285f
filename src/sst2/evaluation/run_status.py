"""The status of a run: what its folder tells of how far it has come, and of how its last start ended."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sst2.checkpoints.folders import own_checkpoints
from sst2.runs.run_folder import RunFolder, is_in_use
from sst2.utils.errors import shortened

FINISHED = "finished"  # the one status of a run that goes into means
MISSING = "missing"  # there is no such folder
NOT_STARTED = "not started"  # there is a folder, in which no run has begun
UNREADABLE = "unreadable"  # it has finished, and its files are damaged
RUNNING = "running"  # a job has locked the folder
UNFINISHED = "unfinished"  # killed, or running on a host whose locks are not seen here

_END = re.compile(r"ended \((stopped|diverged|failed)\): (.*)")  # as sst2.utils.logs.log_end has it
_TAIL = 16_384  # bytes at a log's end, which hold more than its last line
_LONGEST_NOTE = 300  # characters


class Progress(NamedTuple):
    """How far a run has come that has not finished.

    Attributes:
        status: one of the words above; or `stopped`, `diverged` or `failed`, by which train.log ends.
        step: the last optimizer step that is known of; None if none is.
        note: why it ended, in the words of the run; empty where it has left none.
    """

    status: str
    step: int | None = None
    note: str = ""


def progress_of(run: RunFolder) -> Progress:
    """What the files of a run tell that has not written its `metrics.json`."""
    steps = [int(place.name.removeprefix("step-")) for place in own_checkpoints(run.checkpoints)]
    for line in reversed(_last_lines(run.metrics_log)):
        with suppress(ValueError, LookupError, TypeError):  # the last line may be cut off
            steps.append(int(json.loads(line)["step"]))
            break
    step = max(steps, default=None)
    if is_in_use(run):
        return Progress(RUNNING, step)
    last = _last_lines(run.log)[-1:]
    if last and (end := _END.search(last[0])):
        return Progress(end[1], step, shortened(end[2], _LONGEST_NOTE))
    return Progress(UNFINISHED, step)


def _last_lines(file: Path) -> list[str]:
    """The last lines of a text; none if it cannot be read."""
    try:
        with file.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - _TAIL))
            return stream.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []
