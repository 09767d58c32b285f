"""The folder of a run: what lies where, its lock, and whether a run is there and has finished."""

import json
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TextIO

from sst2.utils.checksums import describe_file
from sst2.utils.errors import UserError
from sst2.utils.file_system import fsync, wait_for_lock
from sst2.utils.removal import discard, leftovers, put_aside

MARK = "# A run of train_sst2.py: its settings, readable by --config"  # first line of config.yaml; tells a run's folder
OF_JOB = "# Begun or resumed by job "  # its second line, where the job may start many times
WEIGHTS = "model.safetensors"  # in the exported model's folder


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

    def lock(self, check_stop: Callable[[], object] = lambda: None, patience: float = 30.0) -> None:
        """Create the folder if it is not there, and keep other jobs out of it until `release` or the process's end.

        A job that has been asked to stop and is still writing is waited for, `patience` seconds at most, or until
        `check_stop` raises.

        Raises:
            UserError: another job works in the folder, or it cannot be written.
        """
        file = self.path / ".lock"
        waiting = f"waiting {patience:g} s at most for another job to leave {self.path}"
        no_locks = f"nothing keeps another job out of --output_dir {self.path}, whose file system has no locks"
        try:
            while self._lock is None:
                self._is_new |= not self.path.exists()
                self.path.mkdir(parents=True, exist_ok=True)
                with ExitStack() as stack:
                    opened = stack.enter_context(file.open("w", encoding="utf-8"))
                    wait_for_lock(opened, waiting, check_stop=check_stop, seconds=patience, no_locks=no_locks)
                    if _is_at(file, opened):
                        self._lock = opened
                        stack.pop_all()
        except OSError as error:
            if error.errno or not isinstance(error, TimeoutError):  # a disk of the network may say the same
                raise self._unwritable(error) from None
            raise UserError(
                f"--output_dir {self.path} is in use by another job: end that, or name another folder"
            ) from None

    def release(self) -> None:
        """Let other jobs in. Where this one has made the folder and put nothing into it, it is gone again."""
        if self._lock is None:
            return
        with suppress(OSError):  # the folder may have been removed, and why the job ends is not to be hidden
            if self._is_new and [path.name for path in self.path.iterdir()] == [".lock"]:
                discard(self.path)
        self._lock.close()
        self._lock = None

    def begin(self, overwrite: bool) -> None:
        """Make the folder ready for a start that will write into it.

        `metrics.json` goes first and comes back last: where it is, the run has finished and its model is whole.

        To `overwrite` is to remove the run that is in the folder, all that bears the names above. `config.yaml` stays
        until the new one replaces it: after a kill in between, the folder is still a run's.

        Raises:
            UserError: the folder cannot be written.
        """
        entries = [path for path in vars(self).values() if isinstance(path, Path) and path != self.path]
        going = [self.metrics, *(path for path in entries if path != self.config)] if overwrite else [self.metrics]
        try:
            for leftover in [path for entry in entries for path in leftovers(entry)]:
                discard(leftover)
            for entry in [path for path in going if os.path.lexists(path)]:
                aside = put_aside(entry)
                if (reason := discard(aside)) and aside == entry:
                    raise OSError(None, reason)
                fsync(self.path)
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


def is_run(folder: Path) -> bool:
    """Whether a run of this project is in the folder, and its files may be replaced or continued."""
    try:
        with (folder / "config.yaml").open(encoding="utf-8") as file:
            return file.readline().rstrip() == MARK
    except (OSError, UnicodeDecodeError):
        return False


def job_of(folder: Path) -> str:
    """The id of the job that has last begun or resumed the run in the folder; empty where none is there, or known."""
    try:
        with (folder / "config.yaml").open(encoding="utf-8") as file:
            mark, line = file.readline().rstrip(), file.readline().rstrip()
    except (OSError, UnicodeDecodeError):
        return ""
    return line.removeprefix(OF_JOB) if mark == MARK and line.startswith(OF_JOB) else ""


def is_finished(run: RunFolder) -> bool:
    """Whether there is `metrics.json`, which is written last, and the model whose weights it names is whole."""
    try:
        metrics = json.loads(run.metrics.read_text(encoding="utf-8"))
        for name in ("config.json", "tokenizer.json"):
            json.loads((run.model / name).read_text(encoding="utf-8"))
        is_same: bool = describe_file(run.model / WEIGHTS)["sha256"] == metrics["model_sha256"]
        return is_same
    except (OSError, ValueError, LookupError, TypeError):
        return False
