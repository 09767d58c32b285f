"""The folder of a sweep, which holds all that is known of it: its plan, and a run's folder for each run.

    sweep.yaml          the plan, as it was given
    trials/000.yaml     the flags of a trial, beside trials/000/, its run
    trials/000.exit     its exit code, if it has ended without a result
    study.journal       Optuna's, with method optuna
    finals.json         the trials whose settings are tested; no trial begins after that
    finals/             their runs on fresh seeds, and the baseline's, likewise
    logs/               what the tasks of SLURM have said
    jobs.json           the names of its jobs of SLURM
    results.md          the tables, which trials.csv and finals.csv hold as well

Nothing is kept in memory from one run to the next, so that any process may go on where another one was lost.
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sst2.config.run_flags import FlagParser
from sst2.config.yaml_file import as_written, mistakes_of, values_of
from sst2.runs.run_folder import RunFolder, is_in_use
from sst2.sweeps.plan import Plan, read_plan
from sst2.sweeps.trials import Flags, settings_of_trials
from sst2.utils.atomic_file import write_text
from sst2.utils.errors import EXIT_DIVERGED, UserError
from sst2.utils.file_system import wait_for_lock

logger = logging.getLogger(__name__)

MARK = "# A sweep of train_sst2.py"  # first line of sweep.yaml
LONGEST_TURN = 300.0  # seconds in which others are done with what they do under the lock


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep, which may not have begun yet.

    Attributes:
        folder: of the run.
    """

    folder: Path

    @property
    def flags_file(self) -> Path:
        """The flags that are its own or fixed, readable by `--config`; it is there as soon as they are known."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def exit_file(self) -> Path:
        """Its exit code; it is there if the run has ended without a result."""
        return self.folder.with_name(f"{self.folder.name}.exit")

    @property
    def metrics(self) -> dict[str, Any] | None:
        """What it has come to; None as long as it has not finished."""
        try:
            metrics: dict[str, Any] = json.loads(RunFolder(self.folder).metrics.read_text(encoding="utf-8"))
            return metrics
        except (OSError, ValueError):
            return None

    @property
    def exit_code(self) -> int | None:
        """Of a run that has ended without a result."""
        try:
            return int(self.exit_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to do: another start would come to the same."""
        return self.metrics is not None or self.exit_code == EXIT_DIVERGED

    @property
    def has_ended(self) -> bool:
        """Whether it has, well or not; else it has not begun, works, or was killed and waits to be started again.

        Whoever goes on with a run that has failed may have left its exit code there: `train_sst2.py` knows of none.
        """
        return self.metrics is not None or (self.exit_code is not None and not self.is_in_use)

    @property
    def is_in_use(self) -> bool:
        """Whether a process works in its folder, as far as this host can see, whoever has started it."""
        return is_in_use(RunFolder(self.folder))

    @property
    def is_pruned(self) -> bool:
        """Whether it was stopped for being worse than others."""
        return bool((self.metrics or {}).get("stopped"))

    @property
    def status(self) -> str:
        """For people."""
        if self.metrics is not None:
            return "stopped: below the median" if self.is_pruned else "finished"
        if self.is_in_use:
            return "running"
        if self.exit_code is not None:
            return "diverged" if self.exit_code == EXIT_DIVERGED else f"failed with exit code {self.exit_code}"
        return "not finished" if self.folder.exists() else "not begun"


class SweepFolder:
    """Paths of a sweep, its plan, and the lock under which its files are written.

    Args:
        path: of the folder.
        parser: of the flags of a run.

    Attributes:
        planned: the settings of all trials, where they are known beforehand: with any method but Optuna.

    Raises:
        UserError: there is no sweep in it, or its plan cannot be read.
    """

    def __init__(self, path: Path, parser: FlagParser) -> None:
        self.path = path
        self.parser = parser
        self.plan: Plan = read_plan(path / "sweep.yaml", parser)
        # at once, so that nobody waits for the lock while they are drawn
        self.planned: list[Flags] | None = None if self.plan.method == "optuna" else settings_of_trials(self.plan)
        self.journal = path / "study.journal"
        self.choice = path / "finals.json"

    @property
    def trials(self) -> list[SweepRun]:
        """All of them, in their order."""
        count = self.plan.trials if self.planned is None else len(self.planned)
        return [SweepRun(self.path / "trials" / f"{number:03d}") for number in range(count)]

    def flags(self, run: SweepRun) -> Flags | None:
        """The flags that a run has been given; None where they are not known yet."""
        if not run.flags_file.exists():
            return None
        with mistakes_of(str(run.flags_file)):
            return values_of(self.parser, as_written(run.flags_file.read_bytes()))

    def write_flags(self, run: SweepRun, flags: Flags) -> None:
        """Write them down, for every start of this run."""
        write_text(run.flags_file, yaml.safe_dump(flags, sort_keys=False, allow_unicode=True))

    @contextmanager
    def locked(self, check_stop: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Keep other processes of the sweep waiting; `check_stop` may raise while this one waits for them."""
        try:
            with (self.path / ".lock").open("w", encoding="utf-8") as lock:
                waiting = f"waiting for another process of the sweep in {self.path}"
                wait_for_lock(lock, waiting, check_stop=check_stop, seconds=LONGEST_TURN)
                yield
        except TimeoutError:
            raise UserError(f"{self.path} has been locked for {LONGEST_TURN:g} s: end what works there") from None

    @contextmanager
    def driven(self) -> Iterator[None]:
        """Keep other processes, here or on hosts that see the folder, from running the sweep at the same time.

        The lock ends with the process: the run that a killed driver leaves behind does not hold it.

        Raises:
            UserError: another process runs the sweep.
        """
        with (self.path / ".driver.lock").open("w", encoding="utf-8") as lock:
            try:
                wait_for_lock(lock, f"another process runs the sweep in {self.path}", seconds=0)
            except TimeoutError:
                raise UserError(
                    f"{self.path} is being run by another process already: wait for that, or end it by Ctrl-C"
                ) from None
            yield


def begin(file: Path, path: Path, parser: FlagParser) -> SweepFolder:
    """Make the folder of a sweep, or take the one that has this very plan in it.

    Raises:
        UserError: another plan, or something else, is in the folder, or it cannot be written.
    """
    text = file.read_text(encoding="utf-8")
    try:
        if not is_sweep(path):
            if path.exists() and (not path.is_dir() or any(not one.name.startswith(".") for one in path.iterdir())):
                raise UserError(f"--output_dir {path} holds no sweep, but something else: name another folder")
            path.mkdir(parents=True, exist_ok=True)
            write_text(path / "sweep.yaml", text if text.startswith(MARK) else f"{MARK}\n{text}")
        for name in ("trials", "finals", "logs"):
            (path / name).mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {path} cannot be written ({error.strerror}): name another folder") from None
    sweep = SweepFolder(path, parser)
    if sweep.plan != read_plan(file, parser):
        raise UserError(
            f"--output_dir {path} holds a sweep of another plan than {file}: name another folder, or go on with "
            f"{path / 'sweep.yaml'}"
        )
    return sweep


def is_sweep(path: Path) -> bool:
    """Whether the folder is that of a sweep."""
    try:
        with (path / "sweep.yaml").open(encoding="utf-8") as file:
            return file.readline().rstrip() == MARK
    except (OSError, UnicodeDecodeError):
        return False
