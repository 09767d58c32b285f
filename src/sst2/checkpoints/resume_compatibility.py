"""Settings that are fixed on resume: a checkpoint of another run is refused, with the flag that differs."""

import json
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from sst2.checkpoints.folders import newest_checkpoint
from sst2.checkpoints.training_state import ADDED_LATER, TrainingState
from sst2.config.flag_groups import Precision
from sst2.config.settings import Settings
from sst2.utils.errors import UserError

# Settings that a run cannot change on its way and still be the run that it was, as `resolved.yaml` has them. Data and
# base model have fingerprints instead: they may have moved.
FIXED_ON_RESUME = (
    "smoke dropout max_length max_train_samples max_eval_samples holdout_fraction global_batch_size learning_rate "
    "weight_decay lr_scheduler_type max_grad_norm gradient_compression mixed_precision batching seed label_names "
    "class_weights label_smoothing metric_for_best_model"
).split()
# Those that follow from the data as well: each with the flags that it is worked out from, the strongest first.
LENGTHS_FIXED_ON_RESUME = {
    "max_train_steps": ("max_train_steps", "num_train_epochs"),
    "num_warmup_steps": ("num_warmup_steps", "warmup_ratio"),
}


def refuse_another_version(place: Path, saved: dict[str, Any], state: dict[str, Any]) -> None:
    """Raises UserError: a checkpoint's settings or training state are not those that this version can go on from."""
    known = {field.name for field in fields(TrainingState)}
    if not known >= state.keys() >= known - ADDED_LATER or not saved.keys() >= {*FIXED_ON_RESUME}:
        raise UserError(
            f"--resume_from_checkpoint: {place} was written by another version of this project: finish the run with "
            "that one, or start a new run in another --output_dir"
        )


def refuse_another_run(place: Path, saved: dict[str, Any], settings: Settings) -> None:
    """Compare a checkpoint's settings with the present ones, but for the lengths that follow from the data.

    Raises:
        UserError: one differs.
    """
    for name in FIXED_ON_RESUME:
        value, own = saved[name], getattr(settings, name)
        if own != value:
            flag, ours, theirs = f"--{name}", _words(own), _words(value)
            way_out = f"leave {flag} out" if value is None else f"give {flag} {theirs}"
            raise UserError(
                f"{flag} is {ours} but {place} was trained with {theirs}: {way_out} to go on, or start a new run in "
                "another --output_dir"
            )


def refuse_another_length(place: Path, saved: dict[str, Any], settings: Settings) -> None:
    """Compare how long a run trains and warms up: what the learning rate of each step follows from.

    To be called when the data are known to be the same.

    Raises:
        UserError: one differs; it names the flag that was given.
    """
    for name, flags in LENGTHS_FIXED_ON_RESUME.items():
        value, own = saved[name], getattr(settings, name)
        if own == value:
            continue
        flag = next((flag for flag in flags if flag in settings.given), flags[-1])
        steps = "optimizer steps" if name == "max_train_steps" else "optimizer steps of warm-up"
        model = settings.run_dir / "model"
        further = f"to train its model further, start one with --model_name_or_path {model} in another --output_dir"
        raise UserError(
            f"--{flag} {getattr(settings, flag):g} makes {own} {steps}, but the run of {place} has "
            f"{value}, which its learning rates follow from: give --{name} {value} to go on; "
            + (further if model.is_dir() else "or start a new run in another --output_dir")
        )


def _words(value: Any) -> Any:
    return " ".join(value) if isinstance(value, list) else value


def saved_precision(settings: Settings) -> Precision | None:
    """The precision of the run that `--resume_from_checkpoint` goes on with; None for a new one.

    Nothing is verified: that comes when the checkpoint is loaded, and one that cannot be read is refused then.
    """
    requested = settings.resume_from_checkpoint
    if requested is None:
        return None
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):
        place = newest_checkpoint(settings.run_dir / "checkpoints") if requested == "auto" else Path(requested)
        if place is not None:
            content = json.loads((place / "state.json").read_text(encoding="utf-8"))
            precision: Precision | None = content["settings"]["mixed_precision"]
            return precision
    return None
