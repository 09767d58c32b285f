"""Saving and loading of a run: copied to host memory, written in the background, loaded back whole.

A checkpoint holds `model.safetensors`, `training.pt` (optimizer, schedule, loss scale and the random states of every
rank; read with `weights_only=True`, so that no foreign code can run), `state.json` (how far the run is, its settings,
fingerprints of its data and of the model that it began with), that model's configuration and tokenizer, and the
manifest of `atomic_folder`.
"""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.optim.lr_scheduler import LRScheduler

from sst2.checkpoints.base_model import FINGERPRINT, BaseModel
from sst2.checkpoints.files import (
    UNREADABLE,
    damaged,
    read_state,
    read_training,
    read_weights,
    require_moments_of_the_weights,
    write_checkpoint,
)
from sst2.checkpoints.folders import (
    checkpoint_name,
    checkpoints_to_import,
    find_latest,
    folder_bytes,
    last_good,
    list_checkpoints,
    recover,
    rotate,
)
from sst2.checkpoints.host_copy import HostCopy
from sst2.checkpoints.random_states import random_state, restore_random_state
from sst2.checkpoints.rescue import WriteFiles, save_or_rescue
from sst2.checkpoints.resume_compatibility import (
    refuse_another_length,
    refuse_another_run,
    refuse_another_version,
)
from sst2.checkpoints.training_state import TrainingState
from sst2.config.settings import Settings
from sst2.data.splits import Split
from sst2.distributed.ranks import read_on_main, run_on_main
from sst2.distributed.strategies.strategy import Strategy
from sst2.runs.origin import origin
from sst2.runs.run_folder import RunFolder, is_finished
from sst2.utils.atomic_folder import write_atomic_folder
from sst2.utils.checksums import damage_of
from sst2.utils.errors import UserError
from sst2.utils.waiting import call_with_timeout

logger = logging.getLogger(__name__)

SECONDS_TO_LOOK = 5.0  # for the last good checkpoint, on a disk that may not answer


@dataclass(frozen=True)
class SavedTimes:
    """What one checkpoint cost, in seconds: training stood still for `pause`, and it was on disk after `total`."""

    step: int
    pause: float
    total: float


@dataclass
class Checkpointer:
    """Saves and loads one run.

    Saving copies everything to host memory, which is all that training waits for; a thread of the main process writes
    the copy. The next save waits for the last.

    Attributes:
        folder: the run's checkpoints. All ranks must see the same one.
        strategy: knows weights and optimizer, wherever they lie.
        base: the model that training begins with; None leaves it out of checkpoints, and out of account.
        settings: of the run, with everything that the flags left open filled in.
        splits: the data. What was trained and selected on must be the same when the run goes on.
        is_given_up: whether the last save was waited for in vain; known to the main process.
    """

    folder: Path
    accelerator: Accelerator
    strategy: Strategy
    schedule: LRScheduler
    base: BaseModel | None
    settings: Settings
    splits: Mapping[str, Split]
    is_given_up: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._fingerprints = {name: split.fingerprint for name, split in self.splits.items() if name != "test"}
        self._host_copy = HostCopy()
        self._writer: threading.Thread | None = None
        self._failure: Exception | None = None
        self._saved: TrainingState | None = None
        self._times: list[SavedTimes] = []

    def save(self, state: TrainingState, started: float | None = None) -> None:
        """Save the run as it is now, unless that has been saved already. All ranks call it.

        Returns after the copy. Whether it could be written shows in `has_failed`, at the latest after `wait`.

        By `time.perf_counter`, training has stood still since `started`, or since now.
        """
        if state == self._saved:
            return
        started = time.perf_counter() if started is None else started
        self._saved = replace(state)
        random_states = gather_object([random_state(self.accelerator.device)])
        state_to_copy = self.strategy.weights(), self.strategy.training_state()
        if not self.accelerator.is_main_process:
            return
        self.wait()  # ranks that must not wait in a collective operation for long ask `is_writing` before
        content = {
            "training_state": asdict(state),
            "settings": self.settings.values(),
            "fingerprints": self._fingerprints,
            FINGERPRINT: self.base.fingerprint if self.base else None,
            "world_size": self.accelerator.num_processes,
            "threads": torch.get_num_threads(),
        }
        weights, training = self._host_copy(state_to_copy)
        training |= {"schedule": self.schedule.state_dict(), "random_states": random_states}
        pause = time.perf_counter() - started

        def write_files(folder: Path) -> None:
            write_checkpoint(folder, weights, training, content)
            if self.base:
                self.base.save(folder)

        arguments = (self._saved, write_files, started, pause)
        self._writer = threading.Thread(target=self._write, args=arguments, name="checkpoint writer")
        self._writer.start()

    def wait(self) -> None:
        """Wait until the last save is on disk, or has failed."""
        if self._writer is not None:
            self._writer.join()

    def give_up(self, seconds: float) -> None:
        """Wait no longer for the save that is being written: its disk has not answered for so many seconds."""
        if self._writer is not None and self._saved is not None:
            place = self.folder / checkpoint_name(self._saved.step)
            self._failure = TimeoutError(f"checkpoint {place} is not on disk after {seconds:.0f} s: see to that disk")
            self._writer, self.is_given_up = None, True

    @property
    def is_writing(self) -> bool:
        """Whether the last save is still being written; known to the main process."""
        return self._writer is not None and self._writer.is_alive()

    @property
    def has_failed(self) -> bool:
        """Whether a save could not be written; known to the main process."""
        return self._failure is not None

    def failure(self) -> UserError:
        """The error to raise on every rank when a save has failed on the main process."""
        if self._failure is None:
            return UserError("a checkpoint could not be written; the main process says why")
        last = call_with_timeout(SECONDS_TO_LOOK, lambda: last_good(self.folder), "its folder does not answer")
        return UserError(f"{self._failure}; {last}")

    def take_times(self) -> list[SavedTimes]:
        """What the saves written since the last call have cost."""
        times, self._times = self._times, []
        return times

    @property
    def most_kept(self) -> int:
        """Checkpoints that are there at the same time, at most: the oldest goes when the newest is written."""
        settings = self.settings
        if not (settings.checkpointing_steps or settings.load_best_model_at_end):
            return 1
        return 1 + settings.checkpoints_total_limit + settings.load_best_model_at_end

    def bytes_to_write(self, place: Path | None, state: TrainingState) -> int:
        """Room that this start needs beside the checkpoints that are there: for those to come, and the export.

        If `place`, the checkpoint of `state` that the run resumes from, is another run's, it and the best one beside it
        are copied, and count among those to keep.
        """
        weights = self.base.num_bytes if self.base else 0
        checkpoint = 3 * weights  # AdamW has two moments
        imported = checkpoints_to_import(place, self.folder, state.step, state.best_step).values()
        copies = [folder_bytes(source) for source in imported if source.is_dir()]
        there = len(list_checkpoints(self.folder)) + len(copies)
        return weights + sum(copies) + max(1, self.most_kept - there) * checkpoint

    def find(self, requested: str | None) -> Path | None:
        """The whole checkpoint to resume from; None to start from the beginning. For the main process.

        What is `requested` is a checkpoint's folder, `auto` for the run's newest, or None.

        Raises:
            UserError: there is none that is whole.
        """
        if not self.settings.dry_run:  # which leaves the run in the folder as it is
            recover(self.folder)
        if requested is None:
            return None
        if requested != "auto":
            if damage := damage_of(Path(requested)):
                raise damaged(Path(requested), damage)
            return Path(requested)
        place = find_latest(self.folder)
        if place is None:
            run, stands_for_base = RunFolder(self.folder.parent), self.base.checkpoint if self.base else None
            if stands_for_base in (None, run.model) and is_finished(run):
                return None  # which ends the start as well
            if stands_for_base:
                raise UserError(f"--resume_from_checkpoint: {stands_for_base} is gone meanwhile: start again")
            if began_with := origin(self.folder):
                raise UserError(
                    f"--resume_from_checkpoint: {self.folder} has lost the checkpoints of a run that began with "
                    f"{began_with[1]}: begin with that once more in another --output_dir"
                )
            logger.info("%s holds no checkpoint: starting from the beginning", self.folder)
        return place

    def load(self, place: Path) -> TrainingState:
        """Bring everything back to where it was in a checkpoint of `find`. All ranks call it, one reads the files.

        Raises:
            UserError: it comes from a run with other settings, data or base model, or does not fit the model.
        """
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        content = run_on_main(self.accelerator, lambda: read_state(place))
        try:
            settings, fingerprints = dict(content["settings"]), dict(content["fingerprints"])
            refuse_another_version(place, settings, content["training_state"])
            state = TrainingState(**content["training_state"])
            before, base = (content["world_size"], content["threads"]), content[FINGERPRINT]
            refuse_another_run(place, settings, self.settings)
        except UNREADABLE as error:
            raise damaged(place, error) from None
        if fingerprints != self._fingerprints:
            raise UserError(
                f"--resume_from_checkpoint: {place} was trained with other sentences or labels: give the same data to "
                "go on, or start a new run in another --output_dir"
            )
        self._refuse_another_model(place, settings, base)
        refuse_another_length(place, settings, self.settings)
        load_weights(place, self.strategy)
        training = read_on_main(lambda: read_training(place))
        try:
            require_moments_of_the_weights(training["optimizer"], self.strategy.optimizer_shapes())
            self.strategy.load_training_state(training)
            self.schedule.load_state_dict(training["schedule"])
            device, seed = self.accelerator.device, self.settings.seed
            restore_random_state(training["random_states"], device, rank, world_size, seed, state.step)
        except UNREADABLE as error:
            raise damaged(place, error) from None
        now = world_size, torch.get_num_threads()
        if before != now:
            message = "saved by %d x %d threads, resumed by %d x %d (processes x threads): the last bits differ"
            logger.info(message, *before, *now)
        self._saved = replace(state)
        logger.info("resuming from %s", place)
        return state

    def _refuse_another_model(self, place: Path, saved: dict[str, Any], fingerprint: dict[str, str] | None) -> None:
        settings = self.settings
        if self.base is not None and fingerprint != self.base.fingerprint:
            name, revision = saved["model_name_or_path"], saved["model_revision"]
            raise UserError(
                f"--model_name_or_path {settings.model_name_or_path} (--model_revision {settings.model_revision}) is "
                f"another model than {place} was trained from: give --model_name_or_path {name} --model_revision "
                f"{revision} to go on, or start a new run in another --output_dir"
            )

    def _write(self, state: TrainingState, write_files: WriteFiles, started: float, pause: float) -> None:
        place, best = self.folder / checkpoint_name(state.step), None
        if self.settings.load_best_model_at_end and state.best_step is not None:
            best = self.folder / checkpoint_name(state.best_step)
        try:
            if self.settings.dry_run:
                write_atomic_folder(place, write_files)  # what the disk does not take is not wanted elsewhere either
            else:
                save_or_rescue(place, write_files, best)
            rotate(self.folder, place, self.settings.checkpoints_total_limit, state.best_step)
        except Exception as error:  # whatever it is, the main thread must learn of it
            self._failure = error
            return
        total = time.perf_counter() - started
        self._times.append(SavedTimes(state.step, pause, total))
        logger.info("checkpoint %s: training paused %.3f s, written after %.3f s", place.name, pause, total)


def load_weights(place: Path, strategy: Strategy) -> None:
    """Load a checkpoint's weights alone. All ranks call it, one reads the file.

    Raises:
        UserError: the file is missing or damaged, or belongs to another model.
    """
    weights = read_on_main(lambda: read_weights(place))
    try:
        strategy.load_weights(weights)
    except UNREADABLE as error:
        raise damaged(place, error) from None
