"""Trackers of `--report_to` beside TensorBoard: those of accelerate, none of which can end or hold up a run."""

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from sst2.config.settings import Settings
from sst2.distributed.ranks import run_on_main
from sst2.runs.run_folder import RunFolder
from sst2.utils.atomic_file import write_json
from sst2.utils.errors import UserError

logger = logging.getLogger(__name__)

PROJECT = "sst2"
START_SECONDS = 60.0  # for each of them
CLOSE_SECONDS = 60.0  # for all together
# How a tracker's own run is known, and asked for again when this run goes on.
_IDENTITY: dict[str, Callable[[Any], str]] = {"mlflow": lambda run: run.info.run_id, "wandb": lambda run: run.id}
_AGAIN: dict[str, Callable[[str], dict[str, Any]]] = {
    "mlflow": lambda identity: {"run_id": identity},
    "wandb": lambda identity: {"id": identity, "resume": "allow"},
}


class ExternalTrackers:
    """Does everything in a thread for each, since a server that does not answer would have the ranks wait.

    Nothing is started on other processes than the main one, where every call does nothing.
    """

    def __init__(self) -> None:
        self._started: dict[str, GeneralTracker] = {}
        self._identities: dict[str, str | None] = {}
        self._threads: dict[str, ThreadPoolExecutor] = {}

    def start(self, settings: Settings, run: RunFolder, check_stop: Callable[[], object] = lambda: None) -> None:
        """Start all of `--report_to`, before the run's folder is touched. What `check_stop` raises ends the waiting.

        Raises:
            UserError: one does not start, or not in `START_SECONDS`, that this run has not had before. Another is left
                out: a job that is started again, perhaps by nobody, goes on without it.
        """
        names = [name for name in settings.report_to if name != "tensorboard"]
        if not names:
            return
        if not settings.overwrite_output_dir:
            with suppress(OSError, ValueError, TypeError):
                self._identities = dict(json.loads(run.trackers.read_text(encoding="utf-8")))
        for name in names:
            self._threads[name] = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"tracker {name}")
            starting = self._threads[name].submit(self._start, name, settings, run)
            _wait_for(starting, check_stop)
            error = starting.exception() if starting.done() else TimeoutError(f"no answer in {START_SECONDS:g} s")
            if error is None:
                self._started[name], self._identities[name] = starting.result()
            elif name in self._identities:
                _warn(name, error)
            else:
                raise UserError(f"--report_to {name} does not start ({_in_short(error)}): see to that, or leave it out")

    def record(self, run: RunFolder) -> None:
        """Write which runs of theirs this run has, for its next start."""
        if self._threads:
            write_json(run.trackers, self._identities)

    def log(self, scalars: dict[str, Any], step: int) -> None:
        """Hand numbers over by tag. Returns at once."""
        self._each(lambda tracker: tracker.log(scalars, step=step))

    def close(self) -> None:
        """Wait until everything is handed over, for a while."""
        ended = self._each(lambda tracker: tracker.finish())
        if wait(ended, timeout=CLOSE_SECONDS).not_done:
            logger.warning("--report_to: the last numbers are not handed over after %g s: left out", CLOSE_SECONDS)

    def _start(self, name: str, settings: Settings, run: RunFolder) -> tuple[GeneralTracker, str | None]:
        """The tracker, and how its run is known."""
        kind = LOGGER_TYPE_TO_CLASS[name]
        places = [str(run.path.parent)] if kind.requires_logging_directory else []
        identity = self._identities.get(name)
        tracker = kind(PROJECT, *places, **(_AGAIN[name](identity) if identity and name in _AGAIN else {}))
        tracker.start()
        if name not in self._identities:  # mlflow refuses a parameter that has changed, such as the number of processes
            tracker.store_init_configuration({key: plain(value) for key, value in settings.values().items()})
        return tracker, _IDENTITY[name](tracker.tracker) if name in _IDENTITY else None

    def _each(self, work: Callable[[GeneralTracker], None]) -> list[Future[Any]]:
        """Do this for every tracker, in its thread; one that fails is left out from then on."""

        def do(name: str) -> None:
            if name not in self._started:
                return
            try:
                work(self._started[name])
            except Exception as error:
                del self._started[name]
                _warn(name, error)

        return [self._threads[name].submit(do, name) for name in list(self._started)]


def _wait_for(starting: Future[Any], check_stop: Callable[[], object]) -> None:
    """Until it is done, or `START_SECONDS` have passed: whatever comes of it later is left alone."""
    deadline = time.monotonic() + START_SECONDS
    while wait([starting], timeout=0.1).not_done and time.monotonic() < deadline:
        check_stop()


def start_trackers(
    accelerator: Accelerator, settings: Settings, run: RunFolder, check_stop: Callable[[], object]
) -> ExternalTrackers:
    """Start the trackers of `--report_to` on the main process. All ranks call it.

    Raises:
        UserError, StopRequestedError: on every rank: see `ExternalTrackers.start`.
    """
    trackers = ExternalTrackers()
    run_on_main(accelerator, lambda: trackers.start(settings, run, check_stop))
    return trackers


def plain(value: Any) -> bool | int | float | str:
    """A setting as trackers take it."""
    if isinstance(value, bool | int | float):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()  # a file's name may hold bytes that are no UTF-8


def _warn(name: str, error: BaseException) -> None:
    logger.warning("--report_to %s is left out from now on (%s)", name, _in_short(error))


def _in_short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
