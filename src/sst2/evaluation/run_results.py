"""Results of runs: settings, metrics, predictions and status, read from their folders."""

import csv
import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sst2.checkpoints.folders import newest_checkpoint
from sst2.config.arguments import OF_ONE_START
from sst2.config.class_names import order_of_classes
from sst2.config.flag_groups import LABEL_NAMES
from sst2.config.settings import Settings
from sst2.evaluation.predictions import f1_name, read_predictions
from sst2.evaluation.run_status import FINISHED, MISSING, NOT_STARTED, UNREADABLE, progress_of
from sst2.runs.run_folder import RunFolder, is_run
from sst2.utils.errors import UserError, first_line

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
        name: its folder, as it was given.
        settings: that decide on the result, the seed among them; empty where the run has not begun.
        metrics: as in `metrics.json`.
        label_names: what it calls the classes 0, 1 and so on.
        sentences: what it was evaluated on, with the labels as numbers.
        correct: (sentences,) bool, whether each prediction is right.
        given: the settings that were asked for. The others are defaults, or were worked out.
        status: a word of `sst2.evaluation.run_status`.
        step: of the model that was evaluated; of an unfinished run, the last one that is known of.
        total_steps: optimizer steps that it has, or had at most.
        note: why it has not finished, where its folder says so.
        training_data: fingerprint of token ids and labels, where a checkpoint still has it.
    """

    name: str
    settings: dict[str, Any]
    metrics: dict[str, Any] | None = None
    label_names: tuple[str, ...] = LABEL_NAMES
    sentences: tuple[tuple[str, str], ...] = ()
    correct: np.ndarray | None = None
    given: frozenset[str] = frozenset()
    status: str = FINISHED
    step: int | None = None
    total_steps: int | None = None
    note: str = ""
    training_data: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether the run has written its final metrics."""
        return self.metrics is not None

    @property
    def seed(self) -> int | None:
        """The one setting by which runs of one configuration differ; None where the run has not begun."""
        return int(self.settings["seed"]) if self.settings else None


def find_run(folder: Path) -> Run:
    """What there is of a run, whatever state it is in: one that cannot be read has a status that says so."""
    if not folder.exists():
        return Run(str(folder), {}, status=MISSING)
    if not is_run(folder):
        return Run(str(folder), {}, status=NOT_STARTED)
    try:
        return read_run(folder)
    except UserError as error:
        return Run(str(folder), {}, status=UNREADABLE, note=str(error))


def read_run(folder: Path) -> Run:
    """Read the files of a run that has begun.

    Raises:
        UserError: one of them is damaged or missing.
    """
    place = RunFolder(folder)
    try:
        if not place.resolved.is_file():
            raise ValueError(f"{place.resolved.name} is missing")
        recorded = yaml.safe_load(place.resolved.read_text(encoding="utf-8"))
        asked_for = yaml.safe_load(place.config.read_text(encoding="utf-8")) or {}
        # A run of an earlier version lacks the settings that came later, and ran as their defaults say.
        settings = Settings().values() | recorded
        run = Run(
            name=str(folder),
            settings={name: value for name, value in settings.items() if name not in (*IGNORED, *OF_ONE_START)},
            label_names=tuple(settings["label_names"]),
            given=frozenset(asked_for),
            total_steps=settings["max_train_steps"],
            training_data=_training_data(place),
        )
        if not place.metrics.is_file():
            progress = progress_of(place)
            return replace(run, status=progress.status, step=progress.step, note=progress.note)
        metrics = json.loads(place.metrics.read_text(encoding="utf-8"))
        if "stopped" in metrics:  # by --stop_below_median: it has not had the steps of the others
            return replace(run, status="stopped", step=metrics["step"], note=metrics["stopped"])
        rows = read_predictions(place.predictions, metrics["split"])
        number = {name.upper(): str(number) for number, name in enumerate(run.label_names)}
        sentences = tuple((row["sentence"], number.get(row["label"].upper(), "")) for row in rows)
        correct = np.array([row["label"] == row["prediction"] for row in rows])
        if missing := [name for name in (*FIGURES, f1_name(metrics)) if name not in metrics]:
            raise ValueError(f"{place.metrics.name} lacks {missing[0]}")
        if len(rows) != metrics["count"]:
            raise ValueError(f"{place.predictions.name} has {len(rows)} sentences, metrics.json {metrics['count']}")
    except (OSError, ValueError, LookupError, AttributeError, TypeError, csv.Error, yaml.YAMLError) as error:
        raise UserError(f"{folder} cannot be read ({first_line(error)}): leave it out, or run it again") from None
    return replace(run, metrics=metrics, sentences=sentences, correct=correct, step=metrics["step"])


def _training_data(place: RunFolder) -> str:
    """The fingerprint that the newest checkpoint has of the training split; empty where there is none."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        checkpoint = newest_checkpoint(place.checkpoints)
        if checkpoint is not None:
            content = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
            return str(content["fingerprints"]["train"])
    return ""


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
