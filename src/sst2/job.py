"""Everything a run consists of."""

import logging
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import DistilBertForSequenceClassification, PreTrainedTokenizerBase

from sst2.batching import BatchPlan
from sst2.checkpointing import checkpoint_name, newest_checkpoint
from sst2.data import Split
from sst2.errors import TrainingDivergedError
from sst2.run_folder import RunFolder
from sst2.settings import Settings
from sst2.tracking import Tracker
from sst2.training_state import TrainingState

logger = logging.getLogger(__name__)


@dataclass
class Job:
    """A run, loaded and prepared for its device.

    Attributes:
        settings: all flags, with everything that they left open filled in.
        splits: the data by name: `train`, and of `holdout`, `validation` and `test` those that there are.
        loaders: padded batches of every split but `train`, shared out over the ranks.
        plan: which training sentences make which optimizer step.
        bare_model: the stock model.
        model: the bare model as wrapped for the strategy and the precision; to be called for training and evaluation.
        schedule: steps once per optimizer step; accelerate does not know of it.
    """

    settings: Settings
    accelerator: Accelerator
    run: RunFolder
    tokenizer: PreTrainedTokenizerBase
    splits: dict[str, Split]
    loaders: dict[str, DataLoader]
    plan: BatchPlan
    bare_model: DistilBertForSequenceClassification
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    state: TrainingState
    tracker: Tracker

    @property
    def selection_split(self) -> Split:
        """What evaluations during training look at: the hold-out where there is one, else validation."""
        return self.splits.get("holdout") or self.splits["validation"]

    def diverged(self, what: str) -> TrainingDivergedError:
        """The error to raise when training has broken down; it names the checkpoint to go back to."""
        good = newest_checkpoint(self.run.checkpoints) or "none yet"
        return TrainingDivergedError(
            f"{what}, up to step {self.state.step}: lower --learning_rate; last good checkpoint: {good}"
        )

    @property
    def best_saved_step(self) -> int | None:
        """The best model's step, if it can be loaded: a start without `--load_best_model_at_end` did not save it."""
        best = self.state.best_step
        if best is not None and not (self.run.checkpoints / checkpoint_name(best)).is_dir():
            logger.warning("the best model, of step %d, was not saved: taking the last", best)
            return None
        return best

    @property
    def is_out_of_patience(self) -> bool:
        """Whether as many evaluations in a row as `--early_stopping_patience` were no better than the best."""
        patience = self.settings.early_stopping_patience
        return patience is not None and self.state.evaluations_without_improvement >= patience
