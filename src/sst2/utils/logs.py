"""What a run says: to the terminal, and to the log file in its folder as soon as there is one."""

import logging
import logging.handlers
import sys
import threading
import warnings
from pathlib import Path

import datasets
import huggingface_hub
import transformers

from sst2.utils.console import restrain_deepspeed
from sst2.utils.errors import StopRequestedError, TrainingDivergedError, first_line
from sst2.utils.file_system import BestEffort
from sst2.utils.redaction import redact_logging

_LOGGER = logging.getLogger("sst2")  # the parent of every module's logger


def start_logging(is_main: bool, dated: bool = False) -> None:
    """Send the project's messages to the terminal, and hold them until there is a log file to put them in as well.

    Args:
        is_main: whether this process says what happens; others say what goes wrong.
        dated: whether date and time stand before each message: of a job whose output is read hours later.
    """
    _LOGGER.setLevel(logging.INFO if is_main else logging.ERROR)
    _LOGGER.propagate = False
    terminal = logging.StreamHandler()
    terminal.setFormatter(logging.Formatter(f"{'%(asctime)s ' * dated}%(message)s", "%Y-%m-%d %H:%M:%S"))
    _LOGGER.handlers = [terminal]
    transformers.logging.set_verbosity_error()  # a new head is what this project is about, no reason to warn
    _show_library_bars(is_main and sys.stderr.isatty())
    redact_logging()
    restrain_deepspeed()  # which transformers imports
    # of DeepSpeed's calls in torch 2.13: some in every step
    warnings.filterwarnings("ignore", "`torch.distributed.* is deprecated", FutureWarning)
    threading.excepthook = _report
    if is_main:
        _LOGGER.addHandler(logging.handlers.MemoryHandler(capacity=100_000, flushLevel=logging.CRITICAL + 1))


def _show_library_bars(wanted: bool) -> None:
    """Have downloads and the preparation of data show progress or not: a terminal silent for minutes looks dead.

    transformers' own bars are of the tenths of a second in which it reads a file.
    """
    transformers.logging.disable_progress_bar()  # huggingface_hub's as well: they come back below
    if not huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS:  # else somebody has decided
        (huggingface_hub.utils.enable_progress_bars if wanted else huggingface_hub.utils.disable_progress_bars)()
    if not wanted:
        datasets.disable_progress_bars()


def log_to_file(file: Path) -> None:
    """Write what was held, and everything from now on, to the end of `file`, for as long as that can be written."""
    with BestEffort(str(file)) as handling:
        handler = _LogFile(file, handling)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        for held in [h for h in _LOGGER.handlers if isinstance(h, logging.handlers.MemoryHandler)]:
            held.setTarget(handler)
            held.close()
            _LOGGER.removeHandler(held)
        _LOGGER.addHandler(handler)


def log_end(error: BaseException) -> None:
    """Note in the log file why this start of the run ends. The terminal hears of it when the process ends."""
    kinds = {StopRequestedError: "stopped", TrainingDivergedError: "diverged"}
    kind = next((word for of, word in kinds.items() if isinstance(error, of)), "failed")
    level = logging.INFO if kind == "stopped" else logging.ERROR
    said = f"ended ({kind}): {first_line(error) if kind == 'failed' else ' '.join(str(error).split())}"
    for handler in _LOGGER.handlers:
        if isinstance(handler, _LogFile):
            handler.handle(logging.getLogRecordFactory()(_LOGGER.name, level, __file__, 0, said, None, None))


class _LogFile(logging.FileHandler):
    def __init__(self, file: Path, handling: BestEffort) -> None:
        super().__init__(file, encoding="utf-8", errors="backslashreplace")  # a path may hold bytes that are no UTF-8
        self._handling = handling

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Go on without the file where it cannot be written, as on a full disk: the terminal has the message."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            _LOGGER.removeHandler(self)
            self._handling.lose(error)
        else:
            super().handleError(record)


def _report(failure: threading.ExceptHookArgs) -> None:
    """No traceback of a thread that finds the disk full, as TensorBoard's does: the job meets the error as well."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)
