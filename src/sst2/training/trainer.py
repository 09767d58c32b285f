"""The trainer: everything a run consists of, and what of it changes from step to step."""

import gc
import logging
import socket
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from sst2.checkpoints.checkpointer import Checkpointer, load_weights
from sst2.checkpoints.folders import checkpoint_name, newest_checkpoint
from sst2.checkpoints.training_state import TrainingState
from sst2.config.settings import Settings
from sst2.data.batch_plan import BatchPlan
from sst2.data.splits import Split
from sst2.distributed.ranks import run_on_main
from sst2.distributed.stop_requests import StopFlags, StopRequests
from sst2.distributed.strategies.strategy import Strategy
from sst2.distributed.watchdog import Watchdog
from sst2.evaluation.selection import median_of_others
from sst2.runs.run_folder import RunFolder
from sst2.tracking.tracker import Tracker
from sst2.training.flops import flop_per_token
from sst2.training.loss import TrainingLoss
from sst2.training.profiling import StepProfiler
from sst2.training.slow_ranks import RankTimes, SlowRanks, in_words
from sst2.training.step_metrics import StepMetrics, peak_memory_mib, pop_averages
from sst2.training.steps.choose import choose_runner
from sst2.training.steps.runner import StepRunner
from sst2.utils.checksums import damage_of
from sst2.utils.errors import StopRequestedError, TrainingDivergedError, is_lost_process, lost_process
from sst2.utils.logs import log_end
from sst2.utils.waiting import RunningTime

logger = logging.getLogger(__name__)

Evaluation = tuple[dict[str, Any], np.ndarray]  # metrics (none without labels); logits, (sentences, classes)
STEPS_BETWEEN_COLLECTIONS = 100  # of Python's garbage: ranks that pause one by one make all others wait each time
SHORTEST_PATIENCE = 600.0  # seconds for which a slow disk is waited for at least
SELECTED = {  # in words, by `--metric_for_best_model`
    "accuracy": "the most accurate",
    "f1_macro": "the one of the highest macro F1",
    "loss": "the one of the lowest loss",
}
MAX_SKIPPED_STEPS = 10  # non-finite steps in a row after which the run counts as broken down


@dataclass
class Trainer:
    """A run, loaded and prepared for its device.

    Attributes:
        settings: all flags, with everything that they left open filled in.
        splits: the data by name: `train`, and of `holdout`, `validation` and `test` those that there are.
        loaders: batches of every split but `train`, sharded over the ranks.
        plan: which training sentences make which optimizer step.
        model_config: of the stock model.
        strategy: the model as it is spread over the ranks, and its optimizer.
        schedule: steps once per optimizer step; accelerate does not know of it.
        state: the step, and what is saved beside weights.
        step_metrics: of the steps since `state` was last brought up to date, by `sync_to_host`.
        rank_times: of this rank, where ranks are compared: not on one alone, nor where a strategy cannot tell.
        slow_ranks: compares them, on the main process.
        profiler: records `--profile_steps`.
        step_runner: runs steps eagerly, or as CUDA graphs.
        flop_per_token: of training, as `sst2.training.flops` counts them.
        loss: of training; evaluations have the plain cross-entropy.
        begun: when this start began to train, by `time.perf_counter`, and at which step.
        last_evaluation: metrics and logits of the last one during training, if this process has made it.
    """

    settings: Settings
    accelerator: Accelerator
    run: RunFolder
    tokenizer: PreTrainedTokenizerBase
    splits: dict[str, Split]
    loaders: dict[str, DataLoader[int]]
    plan: BatchPlan
    model_config: PreTrainedConfig
    strategy: Strategy
    schedule: LRScheduler
    state: TrainingState
    checkpointer: Checkpointer
    stop_requests: StopRequests
    watchdog: Watchdog
    tracker: Tracker
    rank_times: RankTimes | None = field(init=False)
    slow_ranks: SlowRanks = field(init=False)
    step_metrics: StepMetrics = field(init=False)
    profiler: StepProfiler = field(init=False)
    step_runner: StepRunner = field(init=False)
    flop_per_token: int = field(init=False)
    loss: TrainingLoss = field(init=False)
    begun: tuple[float, int] = field(init=False)
    last_evaluation: Evaluation | None = None

    def __post_init__(self) -> None:
        can_compare = self.accelerator.num_processes > 1 and bool(self.strategy.own_phases)
        self.rank_times = RankTimes(self.strategy.own_phases) if can_compare else None
        self.slow_ranks = SlowRanks(gather_object([socket.gethostname()]), self.state.slow_ranks, self.state.step)
        self.step_metrics = StepMetrics(
            self.accelerator, self.strategy.waiting, self.state.skipped_in_a_row, self.rank_times
        )
        self.profiler = StepProfiler(
            self.settings.profiled_steps,
            done=self.state.step,
            phases=self.step_metrics.phases,
            folder=self.run.profile,
            rank=self.accelerator.process_index,
            device=self.accelerator.device,
        )
        self.loss = TrainingLoss(self.settings, self.splits["train"], self.strategy.device)
        self.step_runner = choose_runner(self)
        self.flop_per_token = flop_per_token(self.model_config)
        self.begun = time.perf_counter(), self.state.step

    @property
    def selection_split(self) -> Split:
        """What evaluations during training look at: the hold-out where there is one, else validation."""
        return self.splits.get("holdout") or self.splits["validation"]

    @property
    def newest_checkpoint(self) -> Path | None:
        """The newest checkpoint that is in the run's folder."""
        return newest_checkpoint(self.run.checkpoints)

    def start_phase(self, phase: str, number: int = 0) -> None:
        """Start one of `PHASES`, of micro-batch `number` if not 0: for the watchdog, and to measure where time goes."""
        self.watchdog.set_activity(f"step {self.state.step + 1}, {phase}" + (f" of pass {number}" if number else ""))
        self.step_metrics.phases.begin(phase)

    def count_step(self, shards: list[np.ndarray], padded_tokens: int, started: float) -> None:
        """Count an optimizer step, and read metrics from the device if they are due. All ranks call it.

        Args:
            shards: the indices of the step's sentences for each rank.
            padded_tokens: of this rank, padding included.
            started: when the host began with the step, by `time.perf_counter`.
        """
        self.step_metrics.phases.end()
        tokens = [int(self.splits["train"].lengths(shard).sum()) for shard in shards]
        self.state.count_step(sum(map(len, shards)), sum(tokens), max(tokens) * len(tokens))
        self.step_metrics.count(padded_tokens, time.perf_counter() - started)
        if self.step_metrics.is_due:
            self.sync_to_host()
        if self.state.step % STEPS_BETWEEN_COLLECTIONS == 0:
            gc.collect()

    def reduce_stop_flags(self, after_step: bool = False) -> StopFlags:
        """What all ranks have agreed to do. All ranks call it; its time counts as training `after_step`.

        Raises:
            UserError: a checkpoint could not be written.
        """
        with self.step_metrics.between_steps("stop_check") if after_step else nullcontext():
            flags, (has_failed,) = self.stop_requests.reduce(self.checkpointer.has_failed)
        if has_failed:
            raise self.checkpointer.failure()
        return flags

    def pop_averages(self) -> dict[str, Any]:
        """What a logged point of training holds: averages since the last one, and where the run is. All ranks call it.

        Among it `matmul_peak_share`: of what all ranks could do by a large matrix product measured at the start, the
        share that training on the real tokens takes. On the main process, also the times of each rank.
        """
        self.sync_to_host()
        averages = pop_averages(self.state)
        flops = averages["tokens_per_second"] * self.flop_per_token
        return averages | {
            "epoch": self.state.step / self.plan.steps_per_epoch,
            "skipped_steps": self.state.skipped_steps,
            "matmul_peak_share": flops / (self.step_metrics.peak * self.accelerator.num_processes),
            "peak_memory_mib": peak_memory_mib(self.accelerator.device),
            **self._compare_ranks(),
        }

    def _compare_ranks(self) -> dict[str, Any]:
        """The times of each rank since the last call, on the main process, where slow ranks are named."""
        self.watchdog.set_activity(f"the times of all ranks up to step {self.state.step}")
        blocks = self.rank_times.gather() if self.rank_times is not None else None
        if blocks is None:
            return {}
        said = self.slow_ranks.add(blocks)
        for line in said:
            logger.warning("step %d: %s", self.state.step, line)
        if said:
            self.tracker.note_slow_ranks(self.state.step, "; ".join(said))
        return self.slow_ranks.averages(blocks)

    def sync_to_host(self) -> None:
        """Bring `state` up to date with the steps taken. All ranks call it.

        Raises:
            TrainingDivergedError: too many steps in a row have changed nothing.
        """
        self.watchdog.set_activity(f"the sums up to step {self.state.step}")
        if self.step_metrics.read(self.state) >= MAX_SKIPPED_STEPS:
            raise self.diverged(f"loss or gradients were not finite in {MAX_SKIPPED_STEPS} steps in a row")

    def diverged(self, what: str) -> TrainingDivergedError:
        """The error to raise when training has broken down; it names the checkpoint to go back to."""
        good = self.newest_checkpoint or "none yet"
        return TrainingDivergedError(
            f"{what}, up to step {self.state.step}: lower --learning_rate; last good checkpoint: {good}"
        )

    @property
    def is_evaluation_due(self) -> bool:
        """Whether the model is to be evaluated as it is now, and has not been."""
        step = self.state.step
        is_due = step == self.plan.total_steps or step % (self.settings.eval_steps or self.plan.steps_per_epoch) == 0
        return is_due and step > self.state.evaluated_step

    @property
    def is_over(self) -> bool:
        """Whether all steps are done, or `--early_stopping_patience` or `--stop_below_median` ends the run before."""
        patience = self.settings.early_stopping_patience
        return self.state.is_over(self.plan.total_steps, patience) and not self.is_evaluation_due

    def is_below_median(self) -> bool:
        """Whether the best evaluation so far is worse than `--stop_below_median` allows. All ranks call it.

        The main process alone looks at the other runs, which go on meanwhile. A run that has done all its steps is not
        stopped.
        """
        state, name = self.state, self.settings.metric_for_best_model
        folder, split = self.settings.stop_below_median, self.selection_split.name
        if folder is None or state.step == self.plan.total_steps or state.best_score is None:
            return False
        found = run_on_main(
            self.accelerator, lambda: median_of_others(Path(folder), self.run.path, split, state.step, name)
        )
        if found is None or state.best_score >= found:
            return False
        logger.info(
            "step %d: the best %s so far, %.4f, is worse than the median of other runs, %.4f: stopping",
            *(state.step, name, abs(state.best_score), abs(found)),
        )
        return True

    @property
    def best_so_far(self) -> dict[str, float]:
        """The best score of the evaluations so far, under a name for logs, if `--load_best_model_at_end` exports it."""
        score = self.state.best_score
        if score is None or not self.settings.load_best_model_at_end:
            return {}
        return {f"best_{self.settings.metric_for_best_model}": abs(score)}  # losses are scores below 0

    @property
    def reported_split(self) -> Split:
        """What `metrics.json` speaks of: validation where there is one, else the hold-out."""
        return self.splits.get("validation") or self.splits["holdout"]

    @property
    def hides_bars(self) -> bool | None:
        """For tqdm's `disable`: yes on all ranks but one; None there, which hides them only without a terminal."""
        return not self.accelerator.is_main_process or None

    def known_evaluation(self, split: str, step: int) -> Evaluation | None:
        """The last one during training, if it was on that split with the weights after that step."""
        is_it = split == self.selection_split.name and step == self.state.evaluated_step
        return self.last_evaluation if is_it else None

    def load_final_model(self) -> tuple[int, str]:
        """Load the model that the run ends with. Returns its step, and in words how it was chosen."""
        if not self.settings.load_best_model_at_end or self.state.best_step is None:
            return self.state.step, "the last one"
        place = self.run.checkpoints / checkpoint_name(self.state.best_step)
        if damage := run_on_main(self.accelerator, lambda: damage_of(place)):  # or it was never saved
            logger.warning("the best model, %s, is not at hand (%s): taking the last", place, damage)
            return self.state.step, "the last one"
        load_weights(place, self.strategy)
        best = SELECTED[self.settings.metric_for_best_model]
        selected = f"{best} on the {self.selection_split.name} split of all that were evaluated"
        if self.selection_split is self.reported_split:
            selected += ", which flatters these figures"
        return self.state.best_step, selected

    def wait_for_checkpoint(self) -> None:
        """Wait until the last checkpoint is on disk, on all ranks, which go on to hear of each other meanwhile.

        Raises:
            UserError: it could not be written, or is not after ten times `--step_timeout`, and ten minutes at least.
        """
        clock, longest = RunningTime(), max(SHORTEST_PATIENCE, 10 * self.settings.step_timeout)
        while True:
            self.watchdog.set_activity("the end of the last checkpoint")
            is_writing = self.checkpointer.is_writing  # asked before the other: a writer may fail and end in between
            if is_writing and clock.look() > longest:
                self.checkpointer.give_up(longest)
            _, (has_failed, is_writing) = self.stop_requests.reduce(self.checkpointer.has_failed, is_writing)
            if has_failed:
                raise self.checkpointer.failure()
            if not is_writing:
                return
            time.sleep(0.02)

    def log_checkpoint_times(self) -> None:
        """Log what the checkpoints written since the last call have cost."""
        for times in self.checkpointer.take_times():
            self.tracker.log_checkpoint(times)

    def __enter__(self) -> "Trainer":
        device = f"{self.accelerator.num_processes} x {self.accelerator.device}"
        what = "resumed" if self.state.step else "started"
        speed = f"matrix products at {self.step_metrics.peak / 1e9:,.0f} GFLOP/s each"
        self.tracker.note_start(self.state.step, f"{what} on {device}, {speed}")
        self.tracker.log_hparams(self.settings.values())
        gc.freeze()  # what is there now stays, and need not be looked through
        gc.disable()  # from here on `count_step` collects
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *trace: object) -> None:
        """Finish writing, whatever has happened. What cannot be written any more does not hide why the run ended.

        Raises:
            StopRequestedError: the job was suspended, and another process did not survive that.
        """
        gc.enable()
        gc.unfreeze()
        with suppress(RuntimeError) if kind else nullcontext():
            if not is_lost_process(error):  # else the GPU may wait for it for good
                self.profiler.close(write=kind is None or issubclass(kind, StopRequestedError))
        if self.state.slow_ranks:
            logger.warning("slow ranks of the run: %s", in_words(self.state.slow_ranks, " at worst"))
        suspension = self.watchdog.suspension()
        self.watchdog.set_activity("the end of this start")  # watched as well: it leaves the process group
        try:
            self.checkpointer.wait()
            if not self.checkpointer.is_given_up:  # else the files of the tracker may not answer either
                if error is not None:
                    log_end(error)
                with suppress(OSError) if kind else nullcontext():
                    self.log_checkpoint_times()
                    self.tracker.close()
        finally:
            self.watchdog.stop()
        if suspension and is_lost_process(error):
            raise StopRequestedError(f"suspended for {suspension:.0f} s, and {lost_process(str(error))}") from None
