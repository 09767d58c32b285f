"""The folder of a run: what lies where, its lock, and whether a run is there and has finished."""

import fcntl
import json
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TextIO

from sst2.utils.checksums import describe_file
from sst2.utils.errors import UserError
from sst2.utils.file_system import fsync, wait_for_lock
from sst2.utils.removal import UNFINISHED, discard, hidden_name, leftovers, put_aside

logger = logging.getLogger(__name__)

MARK = "# A run of train_sst2.py: its settings, readable by --config"  # first line of config.yaml; tells a run's folder
EVENT_FILES = "events.out.tfevents.*"  # TensorBoard's, one for each start; the folder they are in names the run
OF_JOB = "# Begun or resumed by job "  # its second line, where the job may start many times
WEIGHTS = "model.safetensors"  # in the exported model's folder


class RunFolder:
    """Paths of one run, below `path`. Creating the object touches nothing; as a context it lets other jobs in again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.resolved = path / "resolved.yaml"
        self.environment = path / "environment.json"
        self.metrics_log = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.onnx = path / "onnx"  # made of it by sst2 export
        self.metrics = path / "metrics.json"
        self.predictions = path / "predictions.csv"
        self.log = path / "train.log"
        self.profile = path / "profile"  # with --profile_steps
        self.trackers = path / "trackers.json"  # the runs that it has with the trackers of --report_to
        self._lock: TextIO | None = None
        self._made: list[Path] = []  # by `lock`, in that order: folders above this one, this one, the lock's file
        self._scratch: Path | None = None
        self._has_begun = False

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
                above = [*reversed(self.path.parents), self.path, file]
                self._made = [path for path in above if path in self._made or not path.exists()]
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

    def make_scratch(self) -> Path:
        """Make the folder that a dry run writes to, within the locked one and so on the same disk, hidden.

        `release` removes it; where that cannot be, since the process was killed, the next start does.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            self._scratch = hidden_name(self._dry_run, UNFINISHED)
            self._scratch.mkdir()
        except OSError as error:
            raise self._unwritable(error) from None
        return self._scratch

    def release(self) -> None:
        """Let other jobs in. Where no run has begun, what this one has made is gone again: lock and empty folders."""
        if self._lock is None:
            return
        if self._scratch is not None and (reason := discard(self._scratch)):
            logger.warning("%s cannot be removed (%s): the next start there tries again", self._scratch, reason)
        with suppress(OSError):  # the folder may have been removed, and why the job ends is not to be hidden
            if not self._has_begun or [path.name for path in self.path.iterdir()] == [".lock"]:
                for made in reversed(self._made):
                    made.rmdir() if made.is_dir() else made.unlink()
        self._lock.close()
        self._lock = None

    def event_files(self) -> list[Path]:
        """TensorBoard's files, the oldest first."""
        return sorted(self.path.glob(EVENT_FILES))

    @property
    def _dry_run(self) -> Path:
        return self.path / "dry-run"  # a hidden name of it, never the name itself

    def begin(self, overwrite: bool) -> None:
        """Make the folder ready for a start that will write into it.

        `metrics.json` goes first and comes back last: where it is, the run has finished and its model is whole.

        To `overwrite` is to remove the run that is in the folder, all that bears the names above. `config.yaml` stays
        until the new one replaces it: after a kill in between, the folder is still a run's.

        Raises:
            UserError: the folder cannot be written.
        """
        self._has_begun = True
        entries = [path for path in vars(self).values() if isinstance(path, Path) and path != self.path]
        going = [self.metrics]
        if overwrite:
            going += [*(path for path in entries if path != self.config), *self.event_files()]
            going.append(self.path / "tensorboard")  # where event files lay before
        try:
            places = (*entries, self._dry_run, self.path / EVENT_FILES)
            for leftover in [path for place in places for path in leftovers(place)]:
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


def is_in_use(run: RunFolder) -> bool:
    """Whether a job works in the folder, as far as this host can see: it asks for the lock, and lets it go."""
    with suppress(OSError), (run.path / ".lock").open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # some network file systems say the latter
            return True
    return False


def job_of(folder: Path) -> str:
    """The id of the job that has last begun or resumed the run in the folder; empty where none is there, or known.

    Where no line says it, it is the SLURM job of the run's environment.json: earlier versions wrote no such line.
    """
    with suppress(OSError, ValueError, LookupError, TypeError):
        with (folder / "config.yaml").open(encoding="utf-8") as file:
            mark, line = file.readline().rstrip(), file.readline().rstrip()
        if mark == MARK and line.startswith(OF_JOB):
            return line.removeprefix(OF_JOB)
        if mark == MARK:
            record = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
            return str(record["variables"]["SLURM_JOB_ID"])
    return ""


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
