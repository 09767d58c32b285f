"""The checkpoint of another run that a run began with, noted beside its own checkpoints."""

import json
import os
from contextlib import suppress
from pathlib import Path

ORIGIN = "origin.json"  # beside the checkpoints of a run that began with another run's: which one that was


def origin(folder: Path) -> list[Path]:
    """The other run's checkpoint that the run with these checkpoints began with; empty if it began with none.

    Returns:
        Where it was, and the same by the name that was given, which may have been a link.
    """
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        note = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
        return [Path(note["checkpoint"]), Path(note["named"])]
    return []


def is_origin(place: Path, folder: Path) -> bool:
    """Whether the run with these checkpoints began with that checkpoint, by either name."""
    return not {place.resolve(), Path(os.path.abspath(place))}.isdisjoint(origin(folder))
