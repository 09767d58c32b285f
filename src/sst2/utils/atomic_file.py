"""Files that are whole or absent."""

import json
import os
from pathlib import Path
from typing import Any

from sst2.utils.file_system import fsync


def write_text(file: Path, text: str) -> None:
    """Write a whole file, or leave the old one as it was, also when the host crashes."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    put_in_place(unfinished, file)


def put_in_place(unfinished: Path, file: Path) -> None:
    """Rename a file that has been written, when it is on disk."""
    fsync(unfinished)
    os.replace(unfinished, file)
    fsync(file.parent)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write JSON that any reader takes: a NaN or infinity in it is an error here, not there."""
    write_text(file, json.dumps(content, indent=2, allow_nan=False) + "\n")
