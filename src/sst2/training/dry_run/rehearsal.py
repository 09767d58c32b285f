"""A few steps of a run, evaluations, checkpoints and its end, timed: by the functions that the run itself calls."""

import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from sst2.checkpoints.folders import folder_bytes
from sst2.data.batch_plan import max_micro_batch_size
from sst2.data.collation import evaluation_batch_size, evaluation_loaders
from sst2.training.dry_run.memory import RankMemory, memory_of_rank, memory_of_ranks
from sst2.training.dry_run.workload import OneStep, PlannedStep, Workload, shortened
from sst2.training.trainer import Trainer
from sst2.utils.errors import LocalError, is_out_of_memory

logger = logging.getLogger(__name__)

SECONDS_OF_STEPS = 10.0  # for which steps are timed, in whole rounds
MOST_ROUNDS = 20
SECONDS_OF_EVALUATIONS = 5.0  # for which evaluations are timed, after a first one
MOST_EVALUATIONS = 3
EVALUATED_BATCHES = 16  # of each rank and split, at most


@dataclass(frozen=True)
class TrainingLoop:
    """The functions of train_sst2.py, which all ranks call."""

    train_step: Callable[[Trainer], dict[str, Any]]
    check_stop_requests: Callable[[Trainer, bool], None]
    log_training: Callable[[Trainer, dict[str, Any]], str]
    validate: Callable[[Trainer], bool]
    save_checkpoint: Callable[[Trainer], None]
    finalize: Callable[[Trainer], None]


@dataclass
class Measured:
    """What was measured, in seconds unless it says something else.

    Attributes:
        start_up: from the launcher's start until training begins.
        steps: tokens of the busiest device, and seconds, of each step that was timed.
        first_step: of the run, beyond what it takes later.
        new_shape: of a step with a number of tokens that no step had before, likewise; the mean of some.
        log: of a logged point.
        first_evaluation, evaluation: of the split that is evaluated during training, as far as it was.
        evaluated_share: of that split's tokens that were.
        left_out_at_end: how many times `evaluation` the evaluations at the end take beyond what they did here.
        pause: that training stands still for a checkpoint; the first time, longer by `first_pause`.
        beside_checkpoint: that a step takes longer while one is written.
        write: from the beginning of a checkpoint until it is on disk.
        end: evaluations that are left then, the export and its comparison, the results.
        checkpoint_bytes, model_bytes: of a checkpoint's folder, and of the exported model's.
        ranks: memory of each process.
    """

    start_up: float
    steps: list[tuple[int, float]]
    first_step: float = 0.0
    new_shape: float = 0.0
    log: float = 0.0
    first_evaluation: float = 0.0
    evaluation: float = 0.0
    evaluated_share: float = 1.0
    left_out_at_end: float = 0.0
    first_pause: float = 0.0
    pause: float = 0.0
    beside_checkpoint: float = 0.0
    write: float = 0.0
    end: float = 0.0
    checkpoint_bytes: int = 0
    model_bytes: int = 0
    ranks: list[RankMemory] = field(default_factory=list)


class Rehearsal:
    """Calls the training loop of a run that writes to a folder which is removed in the end.

    Weights, schedule and state of the trainer change, so that it is of no use afterwards. All ranks make one, and call
    its methods.
    """

    def __init__(self, trainer: Trainer, loop: TrainingLoop, workload: Workload) -> None:
        self._trainer, self._loop, self._workload = trainer, loop, workload
        self._plan = trainer.plan
        self._on_gpu = trainer.strategy.device.type == "cuda"
        self._metrics: dict[str, Any] = {}

    def measure(self, start_up: float) -> Measured:
        """Measure everything.

        Raises:
            LocalError: there is not enough memory on this rank; the message says for what, and the way out.
            StopRequestedError: somebody has asked for the end.
            UserError: something fails that would fail in the run.
        """
        measured = Measured(start_up, steps=[])
        self._shorten_evaluations(measured)
        planned = self._workload.to_measure(self._trainer.step_runner.has_graphs)
        if planned:
            self._measure_steps(planned, measured)
            self._measure_log(planned[-1], measured)
            self._measure_checkpoint(planned[0], measured)
        self._measure_evaluation(planned, measured)
        self._measure_end(measured)
        return measured

    def _measure_steps(self, planned: list[PlannedStep], measured: Measured) -> None:
        """The largest first: where memory does not suffice, it is known at once."""
        logger.info("dry run: steps of %d to %d tokens on the busiest device", planned[-1].busiest, planned[0].busiest)
        warm_up, block = (3, 8) if self._on_gpu else (1, 1)  # captures come with the second; a GPU has steps in a row
        first = [sum(self._take(step) for _ in range(warm_up)) for step in planned]
        rounds: list[list[float]] = []
        while len(rounds) < MOST_ROUNDS and (len(rounds) < 2 or sum(map(sum, rounds)) * block < SECONDS_OF_STEPS):
            rounds.append([self._take(step, block) for step in planned])
            if sum(map(sum, rounds)) * block > 6 * SECONDS_OF_STEPS:
                break
        # Medians: a moment in which another program was busy would else count for every step of that size.
        usual = [statistics.median(times) for times in zip(*rounds, strict=True)]
        extra = [total - warm_up * seconds for total, seconds in zip(first, usual, strict=True)]
        measured.steps = [(step.busiest, seconds) for step, seconds in zip(planned, usual, strict=True)]
        measured.first_step = max(0.0, extra[0])
        # The mean of all: the noise of single ones cancels out, where positive ones alone would add up over the shapes.
        measured.new_shape = max(0.0, sum(extra[1:])) / max(1, len(extra[1:]))

    def _measure_log(self, step: PlannedStep, measured: Measured) -> None:
        for _ in range(2):  # the first time, libraries prepare
            self._take(step)
            measured.log = self._seconds(lambda trainer: self._loop.log_training(trainer, self._metrics))

    def _measure_checkpoint(self, largest: PlannedStep, measured: Measured) -> None:
        """With the largest step beside it, as in training: there is one more copy of everything in memory then."""
        logger.info("dry run: a checkpoint, and the largest step while it is written")
        usual = max(measured.steps)[1]
        for _ in range(2):
            with self._needing("a checkpoint", "take a machine with more memory, or --mem"):
                pause = self._seconds(self._loop.save_checkpoint)
                step = self._take(largest)
                waited = self._seconds(Trainer.wait_for_checkpoint)
            measured.first_pause = max(0.0, (measured.pause or pause) - pause)
            measured.pause, measured.write = pause, pause + step + waited
            measured.beside_checkpoint = max(0.0, step - usual)
        if self._trainer.accelerator.is_main_process:
            measured.checkpoint_bytes = folder_bytes(Path(str(self._trainer.newest_checkpoint)))

    def _measure_evaluation(self, planned: list[PlannedStep], measured: Measured) -> None:
        size = evaluation_batch_size(self._trainer.settings, self._trainer.strategy.device)
        name = self._trainer.selection_split.name
        logger.info("dry run: an evaluation on %s in batches of %d sentences", name, size)
        smaller = f"--per_device_eval_batch_size {max(1, size // 2)}"
        with self._needing(f"an evaluation, {size} sentences at once", smaller):
            measured.first_evaluation = self._seconds(self._loop.validate)
            times: list[float] = []
            while not times or (len(times) < MOST_EVALUATIONS and sum(times) < SECONDS_OF_EVALUATIONS):
                for step in planned[-1:]:  # of another step, so that as much is written for TensorBoard
                    self._take(step)
                self._trainer.state.best_score = None  # the next one is the best, which the last checkpoint saves
                times.append(self._on_slowest_rank(self._seconds(self._loop.validate)))
            measured.evaluation = statistics.median(times)

    def _measure_end(self, measured: Measured) -> None:
        logger.info("dry run: the last checkpoint, the export, and its comparison")
        with self._needing("the end of the run", "take a machine with more memory, or --mem"):
            self._loop.save_checkpoint(self._trainer)
            self._trainer.watchdog.set_activity("the memory of all ranks")
            # Now: `finalize` ends the watchdog, without which nobody would notice a lost rank.
            measured.ranks = memory_of_ranks(self._trainer.accelerator)
            measured.end = self._seconds(self._loop.finalize)
        if self._trainer.accelerator.is_main_process:  # which alone exports
            measured.ranks[0] = memory_of_rank(self._trainer.accelerator)
            measured.model_bytes = folder_bytes(self._trainer.run.model)

    def _shorten_evaluations(self, measured: Measured) -> None:
        """Have evaluations take some batches of each split, the one with the longest sentences among them."""
        trainer, settings = self._trainer, self._trainer.settings
        accelerator, full = trainer.accelerator, dict(trainer.splits)
        size = evaluation_batch_size(settings, trainer.strategy.device) * accelerator.num_processes
        short = {name: shortened(split, size, EVALUATED_BATCHES) for name, split in full.items() if name != "train"}
        short = {"train": full["train"], **short}
        trainer.splits = short
        trainer.loaders = evaluation_loaders(short, settings, trainer.tokenizer.pad_token_id, accelerator)
        selected = trainer.selection_split.name
        evaluated = len(short[selected].input_ids)
        measured.evaluated_share = evaluated / len(full[selected].input_ids)
        left_out = sum(
            len(full[name].input_ids) - len(split.input_ids)
            for name, split in short.items()
            if name not in ("train", selected)
        )
        if settings.load_best_model_at_end:  # which may be another one than the last that was evaluated
            left_out += len(full[selected].input_ids)
        measured.left_out_at_end = left_out / evaluated

    def _take(self, step: PlannedStep, times: int = 1) -> float:
        """Take a step of the plan some times in a row. Returns the seconds of one, on the slowest rank."""
        trainer, loop = self._trainer, self._loop
        trainer.plan = OneStep(**vars(self._plan), chosen=step.number)
        with self._needing_for(step):
            started = time.perf_counter()
            for _ in range(times):
                self._metrics = loop.train_step(trainer)
                trainer.watchdog.step_done()
                loop.check_stop_requests(trainer, True)
            trainer.sync_to_host()
            seconds = (time.perf_counter() - started) / times
        return self._on_slowest_rank(seconds)

    def _on_slowest_rank(self, seconds: float) -> float:
        everyone: list[float] = gather_object([seconds])
        return max(everyone)

    def _seconds(self, work: Callable[[Trainer], object]) -> float:
        started = time.perf_counter()
        work(self._trainer)
        return time.perf_counter() - started

    def _needing_for(self, step: PlannedStep) -> Any:
        """Around a step: see `_needing`."""
        settings, devices = self._trainer.settings, self._trainer.accelerator.num_processes
        at_once = min(max_micro_batch_size(settings, self._trainer.strategy.device), -(-step.sentences // devices))
        what = f"a step of {step.sentences} sentences and {step.tokens} tokens, {at_once} sentences at once on a device"
        smaller = (
            f"--per_device_train_batch_size {at_once // 2} --global_batch_size {settings.global_batch_size} takes the "
            "same steps in smaller passes, and --gradient_checkpointing keeps less of each"
        )
        return self._needing(
            what, smaller if at_once > 1 else "--gradient_checkpointing, a lower --max_length, or ZeRO"
        )

    @contextmanager
    def _needing(self, what: str, way_out: str) -> Iterator[None]:
        """Around what may take more memory than there is.

        Raises:
            LocalError: it does.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, LocalError) or not is_out_of_memory(error):
                raise
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise LocalError(f"out of memory ({said}) in the dry run, for {what}: {way_out}") from error
