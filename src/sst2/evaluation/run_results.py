"""Results of runs: settings, metrics and predictions, read from their folders."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sst2.config.arguments import OF_ONE_START
from sst2.config.class_names import order_of_classes
from sst2.config.flag_groups import LABEL_NAMES
from sst2.config.settings import Settings
from sst2.evaluation.predictions import f1_name, read_predictions
from sst2.runs.run_folder import RunFolder
from sst2.utils.errors import UserError

# Settings that say where, how often and in what portions something is done, and nothing of the result.
IGNORED = (
    "output_dir report_to logging_steps log_sample_ids checkpointing_steps checkpoints_total_limit step_timeout "
    "connect_timeout stage_dir per_device_eval_batch_size per_device_train_batch_size gradient_accumulation_steps "
    "sentence_column label_column label_names cuda_graphs kernels gradient_checkpointing"
).split()
FIGURES = ("accuracy", "accuracy_ci95", "loss", "step", "sentences_per_second")


@dataclass(frozen=True, eq=False)
class Run:
    """One run. `metrics` and `correct` are None where it has not finished.

    Attributes:
        settings: that decide on the result, the seed among them.
        metrics: as in `metrics.json`.
        label_names: what it calls the classes 0, 1 and so on.
        sentences: what it was evaluated on, with the labels as numbers.
        correct: (sentences,) bool, whether each prediction is right.
    """

    name: str
    settings: dict[str, Any]
    metrics: dict[str, Any] | None = None
    label_names: tuple[str, ...] = LABEL_NAMES
    sentences: tuple[tuple[str, str], ...] = ()
    correct: np.ndarray | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run has written its final metrics."""
        return self.metrics is not None

    @property
    def seed(self) -> int:
        """The one setting by which runs of one configuration differ."""
        return int(self.settings["seed"])

    @property
    def configuration(self) -> str:
        """The same of all runs that differ by their seed alone."""
        return repr(sorted((name, value) for name, value in self.settings.items() if name != "seed"))


def read_run(folder: Path) -> Run:
    """Read the files of one run.

    Raises:
        UserError: one of them is damaged or missing.
    """
    place = RunFolder(folder)
    try:
        if not place.resolved.is_file():
            raise ValueError(f"{place.resolved.name} is missing")
        recorded = yaml.safe_load(place.resolved.read_text(encoding="utf-8"))
        # A run of an earlier version lacks the settings that came later, and ran as their defaults say.
        settings = Settings().values() | recorded
        deciding = {name: value for name, value in settings.items() if name not in (*IGNORED, *OF_ONE_START)}
        if not place.metrics.is_file():
            return Run(str(folder), deciding)
        metrics = json.loads(place.metrics.read_text(encoding="utf-8"))
        rows = read_predictions(place.predictions, metrics["split"])
        number = {name.upper(): str(number) for number, name in enumerate(settings["label_names"])}
        sentences = tuple((row["sentence"], number.get(row["label"].upper(), "")) for row in rows)
        correct = np.array([row["label"] == row["prediction"] for row in rows])
        if missing := [name for name in (*FIGURES, f1_name(metrics)) if name not in metrics]:
            raise ValueError(f"{place.metrics.name} lacks {missing[0]}")
        if len(rows) != metrics["count"]:
            raise ValueError(f"{place.predictions.name} has {len(rows)} sentences, metrics.json {metrics['count']}")
    except (OSError, ValueError, LookupError, AttributeError, TypeError, csv.Error, yaml.YAMLError) as error:
        raise UserError(f"{folder} cannot be read ({error}): leave it out, or run it again") from None
    return Run(str(folder), deciding, metrics, tuple(settings["label_names"]), sentences, correct)


def same_sentences(run: Run, other: Run) -> bool:
    """Whether two runs were evaluated on the same sentences with the same labels.

    Labels are compared by name where both runs name the same classes, in whatever order, and of two other classes each
    by number.
    """
    if not same_classes(run, other):
        return False
    order = order_of_classes(other.label_names, run.label_names) or [0, 1]
    numbers = {str(number): str(there) for number, there in enumerate(order)}
    return tuple((sentence, numbers.get(label, label)) for sentence, label in run.sentences) == other.sentences


def same_classes(run: Run, other: Run) -> bool:
    """Whether the classes of two runs can be compared: by name, or by number where each has two."""
    are_pairs = len(run.label_names) == len(other.label_names) == 2
    return are_pairs or order_of_classes(other.label_names, run.label_names) is not None
