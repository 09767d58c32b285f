"""The folder of a run: what lies where, and files that are whole or absent."""

import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from sst2.errors import UserError
from sst2.file_system import NoLocksError, sync, try_lock, warn_once


class RunFolder:
    """Paths of one run, below `path`. Creating the object touches nothing; as a context it lets other jobs in again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.resolved = path / "resolved.yaml"
        self.environment = path / "environment.json"
        self.tensorboard = path / "tensorboard"
        self.metrics_log = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.onnx = path / "onnx"  # made of it by python -m sst2.export
        self.metrics = path / "metrics.json"
        self.predictions = path / "predictions.csv"
        self.log = path / "train.log"
        self.trackers = path / "trackers.json"  # the runs that it has with the trackers of --report_to
        self._lock: TextIO | None = None
        self._is_new = False

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def lock(self, patience: float = 30.0) -> None:
        """Create the folder if it is not there, and keep other jobs out of it until `release` or the process's end.

        Args:
            patience: seconds to wait for a job that has been asked to stop and is still writing.

        Raises:
            UserError: another job works in the folder, or it cannot be written.
        """
        file, deadline = self.path / ".lock", time.monotonic() + patience
        try:
            while self._lock is None:
                self._is_new |= not self.path.exists()
                self.path.mkdir(parents=True, exist_ok=True)
                opened = open(file, "w", encoding="utf-8")  # noqa: SIM115 (open until release)
                if self._is_free(opened) and _is_at(file, opened):
                    self._lock = opened
                    return
                opened.close()
                if time.monotonic() > deadline:
                    raise UserError(
                        f"--output_dir {self.path} is in use by another job: end that, or name another folder"
                    )
                time.sleep(0.1)
        except OSError as error:
            raise self._unwritable(error) from None

    def _is_free(self, file: TextIO) -> bool:
        try:
            return try_lock(file)
        except NoLocksError as error:
            message = f"nothing keeps another job out of --output_dir {self.path}, whose file system has no locks"
            warn_once("locks of runs", self.path, message, error)
            return True

    def release(self) -> None:
        """Let other jobs in. Where this one has made the folder and put nothing into it, it is gone again."""
        if self._lock is None:
            return
        with suppress(OSError):  # the folder may have been removed, and why the job ends is not to be hidden
            if self._is_new and [path.name for path in self.path.iterdir()] == [".lock"]:
                shutil.rmtree(self.path)
        self._lock.close()
        self._lock = None

    def clear(self) -> None:
        """Remove the run that is in the folder: all that bears the names above.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            for entry in [path for path in vars(self).values() if isinstance(path, Path) and path != self.path]:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"--output_dir {self.path} cannot be written ({error.strerror}): name another")


def _is_at(place: Path, file: TextIO) -> bool:
    """Whether the open file is still the one at this place: a job that ends may remove its folder."""
    try:
        return os.path.samestat(place.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def write_text(file: Path, text: str) -> None:
    """Write a whole file, or leave the old one as it was, also when the host crashes."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    sync(unfinished)
    os.replace(unfinished, file)
    sync(file.parent)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write JSON that any reader takes: a NaN or infinity in it is an error here, not there."""
    write_text(file, json.dumps(content, indent=2, allow_nan=False) + "\n")
