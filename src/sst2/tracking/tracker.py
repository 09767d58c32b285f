"""A run's numbers: TensorBoard, metrics.jsonl, and the other trackers of `--report_to`."""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from sst2.checkpoints.checkpointer import SavedTimes
from sst2.checkpoints.training_state import TrainingState
from sst2.config.flag_groups import LABEL_NAMES
from sst2.runs.run_folder import EVENT_FILES, RunFolder
from sst2.tracking.dashboard import Dashboard
from sst2.tracking.external_trackers import ExternalTrackers, plain
from sst2.tracking.tags import Tags
from sst2.utils.atomic_file import write_text
from sst2.utils.file_system import BestEffort, fsync

if TYPE_CHECKING:
    from sst2.data.splits import Split


# What is worth a column of TensorBoard's HParams table: settings that decide on the result. It shows those first in
# which the runs differ.
HPARAMS = (
    "model_name_or_path dataset_name train_file holdout_fraction max_train_samples max_length batching "
    "global_batch_size learning_rate lr_scheduler_type num_train_epochs max_train_steps num_warmup_steps weight_decay "
    "dropout max_grad_norm class_weights label_smoothing mixed_precision load_best_model_at_end metric_for_best_model "
    "seed"
).split()


class Tracker:
    """Writes on the main process; every process may call it.

    Args:
        accelerator: knows the main process.
        run: the folder to write to.
        trackers: of `--report_to` beside TensorBoard, started.
        state: where this start begins; what an earlier one logged beyond it is dropped, so that a restarted run
            continues its curves where they stood.
        selection_split: name of the split that is evaluated during training; others come at the end, once more after
            a restart.
        label_names: of the classes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        run: RunFolder,
        trackers: ExternalTrackers,
        state: TrainingState,
        selection_split: str,
        label_names: Sequence[str] = LABEL_NAMES,
    ) -> None:
        self._is_main = accelerator.is_main_process
        self._trackers = trackers
        self._metrics_log = _Log(run.metrics_log)
        self._samples = _Log(run.samples)
        self._board: SummaryWriter | None = None
        self._for_board = BestEffort("TensorBoard's file")
        self._tags = Tags(selection_split, label_names)
        if accelerator.is_main_process:
            trackers.record(run)
            last_steps = {"train": state.step, selection_split: state.evaluated_step}
            for log in (self._metrics_log, self._samples):
                log.drop_later_lines(last_steps)
            with self._for_board:
                restarted = bool(run.event_files())
                _date_before_now(run.event_files())
                # TensorBoard's own tracker of accelerate has no purge_step: its curves zig-zag after a restart
                self._board = SummaryWriter(str(run.path), purge_step=state.step + 1 if restarted else None)
                self._dashboard = Dashboard(self._board, self._tags)
                self._event_files = run.event_files()[-1:]

    def log(self, split: str, step: int, values: dict[str, Any]) -> None:
        """Log the numbers of one split after `step` optimizer steps: under their own names, and as curves by `Tags`."""
        scalars = self._tags.scalars(split, values)
        self._trackers.log(scalars, step)
        self._log_scalars(scalars, step)
        if self._is_main:
            self._metrics_log.append({"split": split, "step": step, **values})

    def _on_board(self, write: Callable[[SummaryWriter], object]) -> None:
        """Write to TensorBoard's file, on the main process and as long as that works."""
        if self._board is not None and not self._for_board.is_lost:
            with self._for_board:
                write(self._board)

    def _log_scalars(self, scalars: dict[str, float], step: int) -> None:
        def write(board: SummaryWriter) -> None:
            for name, value in scalars.items():
                board.add_scalar(name, value, step)

        self._on_board(write)

    def show(self, split: "Split", step: int, logits: np.ndarray, run_seconds: float | None = None) -> None:
        """Show an evaluation in TensorBoard beside its numbers: see `Dashboard.show`."""
        self._on_board(lambda _: self._dashboard.show(split, step, logits, run_seconds))

    def note_start(self, step: int, text: str) -> None:
        """How the run was started or resumed, and after which step: in TensorBoard's text."""
        self._note("run/starts", step, text)

    def note_end(self, step: int, text: str) -> None:
        """Why it ended, likewise. Under a name of its own, since TensorBoard shows one text for each step."""
        self._note("run/ends", step, text)

    def note_slow_ranks(self, step: int, text: str) -> None:
        """Which ranks have become slow, or are so no longer, likewise."""
        self._note("run/slow_ranks", step, text)

    def _note(self, tag: str, step: int, text: str) -> None:
        self._on_board(lambda board: board.add_text(tag, text, step))

    def log_samples(self, step: int, rows: list[int]) -> None:
        """Log which rows of the training split made step number `step` (counted from 1), sorted."""
        if self._is_main:
            self._samples.append({"step": step, "rows": sorted(rows)})

    def log_checkpoint(self, times: SavedTimes) -> None:
        """Log what a checkpoint cost: in TensorBoard alone, since it says nothing of the model."""
        seconds = {"checkpoint_pause_seconds": times.pause, "checkpoint_total_seconds": times.total}
        self._log_scalars(self._tags.scalars("train", seconds), times.step)

    def log_hparams(self, settings: dict[str, Any]) -> None:
        """The run's line in TensorBoard's HParams table, in the run itself rather than a run of its own.

        Its columns of metrics are the last points of the curves. Without torch's summary of the experiment, TensorBoard
        works out all columns from all runs; with it, those of an arbitrary run would be the columns of all.
        """
        shown = {name: _in_table(settings[name]) for name in HPARAMS if settings.get(name) is not None}
        _, started, _ = hparams(shown, {})
        self._on_board(lambda board: board._get_file_writer().add_summary(started))

    def flush(self) -> None:
        """Bring everything logged so far to disk, before a checkpoint says that it was."""
        if not self._is_main:
            return
        for log in (self._metrics_log, self._samples):
            log.flush()
        self._on_board(self._flush_board)

    def _flush_board(self, board: SummaryWriter) -> None:
        board.flush()
        for file in self._event_files:
            fsync(file)

    def close(self) -> None:
        """Close the files, and end the other trackers."""
        self._on_board(SummaryWriter.close)
        self._trackers.close()


class _Log:
    """A file of JSON, one object a line, without which a run goes on where it cannot be written."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._for_file = BestEffort(str(file))

    def append(self, content: dict[str, Any]) -> None:
        # JSON has no NaN: a number that is not finite becomes null
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in content.items()}
        line = json.dumps(finite, allow_nan=False) + "\n"

        def append() -> None:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(line)

        self._write(append)

    def drop_later_lines(self, last_steps: dict[str, int]) -> None:
        self._write(lambda: drop_later_lines(self._file, last_steps))

    def flush(self) -> None:
        self._write(lambda: fsync(self._file) if self._file.exists() else None)

    def _write(self, write: Callable[[], object]) -> None:
        if not self._for_file.is_lost:
            with self._for_file:
                write()


def _in_table(value: Any) -> float | str:
    """A setting as a cell of the HParams table, where torch would have 1.0 for True."""
    if isinstance(value, bool):
        return str(value)
    return plain(" ".join(value) if isinstance(value, list) else value)


def drop_later_lines(file: Path, last_steps: dict[str, int]) -> None:
    """Keep the lines of a log up to a step; one cut off by a kill, or garbage that a power cut has left, goes too.

    `last_steps` has the last step to keep, by split. Lines without a split are of `train`, other splits are dropped.
    """
    if not file.exists():
        return
    kept = []
    for line in file.read_bytes().splitlines():
        try:
            text = line.decode("utf-8")
            content = json.loads(text)
            if content["step"] <= last_steps.get(content.get("split", "train"), -1):
                kept.append(text + "\n")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
    write_text(file, "".join(kept))


def _date_before_now(event_files: list[Path]) -> None:
    """TensorBoard reads a run's files in the order of the seconds in their names: one to come must be the last.

    It would not be after a start in this very second, or by a clock that has been put back.
    """
    stem = EVENT_FILES.removesuffix("*")
    now = int(time.time())
    if event_files and event_files[-1].name >= f"{stem}{now:010d}":
        for age, file in enumerate(reversed(event_files), start=1):
            rest = file.name.removeprefix(stem).partition(".")[2]
            file.rename(file.with_name(f"{stem}{now - age:010d}.{rest}"))
