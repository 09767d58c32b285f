"""Everything a run consists of."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import DistilBertForSequenceClassification, PreTrainedTokenizerBase

from sst2.arguments import Settings
from sst2.batching import BatchPlan
from sst2.data import Split
from sst2.run_folder import RunFolder
from sst2.tracking import Tracker
from sst2.training_state import TrainingState


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

    @property
    def is_out_of_patience(self) -> bool:
        """Whether as many evaluations in a row as `--early_stopping_patience` were no better than the best."""
        patience = self.settings.early_stopping_patience
        return patience is not None and self.state.evaluations_without_improvement >= patience
