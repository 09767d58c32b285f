"""Checkpoints: written beside their place and put there by one rename, found, rotated, loaded.

A checkpoint is a folder `step-00000123` with `model.safetensors`, `training.pt` (optimizer, schedule, loss scale and
the random states of every rank; read with `weights_only=True`, so that no foreign code can run) and `state.json`.
"""

import json
import logging
import os
import pickle
import random
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LRScheduler

from sst2.data import Split
from sst2.errors import UserError
from sst2.settings import Settings
from sst2.training_state import TrainingState

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8})")
DATA = "data"  # key of the splits' fingerprints among what identifies a run
# Settings that a run cannot change on its way and still be the run that it was.
BINDING_SETTINGS = (
    "model_name_or_path model_revision dropout dataset_name dataset_config_name dataset_revision max_length "
    "max_train_samples holdout_fraction global_batch_size learning_rate weight_decay max_train_steps "
    "lr_scheduler_type num_warmup_steps max_grad_norm mixed_precision seed"
).split()


def identity(settings: Settings, splits: dict[str, Split]) -> dict[str, Any]:
    """What must be the same for a run to go on: the binding settings, and the sentences trained and selected on."""
    binding: dict[str, Any] = {name: getattr(settings, name) for name in BINDING_SETTINGS}
    return binding | {DATA: {name: split.fingerprint for name, split in splits.items() if name != "test"}}


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in order of their steps. Unfinished ones have another name and are not seen."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir())


def save_checkpoint(
    folder: Path,
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    state: TrainingState,
    run_identity: dict[str, Any],
    limit: int,
) -> Path:
    """Write a checkpoint and then remove the oldest beyond `limit`, never the best. All ranks call it.

    Returns:
        The checkpoint's folder.
    """
    place = folder / checkpoint_name(state.step)
    random_states = gather_object([_random_state()])
    if accelerator.is_main_process:
        unfinished = folder / f".{place.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, unfinished / "model.safetensors", metadata={"format": "pt"})
        training = {
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
            "random_states": random_states,
        }
        torch.save(training, unfinished / "training.pt")
        content = {"training_state": asdict(state), "identity": run_identity}
        (unfinished / "state.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for file in unfinished.iterdir():
            _sync(file)
        if place.exists():  # a run that was resumed from an earlier step passes here again
            _remove(place)
        os.rename(unfinished, place)
        _sync(folder)
        _rotate(folder, place.name, limit, state.best_step)
    accelerator.wait_for_everyone()
    return place


def newest_checkpoint(folder: Path) -> Path | None:
    return max(list_checkpoints(folder), default=None)


def find_checkpoint(requested: str | None, folder: Path) -> Path | None:
    """The checkpoint to resume from: the requested folder, the newest of the run for `auto`, or none."""
    if requested != "auto":
        return Path(requested) if requested else None
    newest = newest_checkpoint(folder)
    if newest is None:
        logger.warning("%s holds no checkpoint: starting from the beginning", folder)
    return newest


def load_checkpoint(
    place: Path,
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    run_identity: dict[str, Any],
) -> TrainingState:
    """Bring everything back to where it was when the checkpoint was written.

    Raises:
        UserError: the folder is no whole checkpoint, or comes from a run with other settings.
    """
    content = _read_state(place)
    _refuse_another_run(place, content["identity"], run_identity)
    load_weights(place, model)
    try:
        training = torch.load(place / "training.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(training["optimizer"])
        scheduler.load_state_dict(training["scheduler"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(training["scaler"])
        states = training["random_states"]
        _restore_random_state(states[accelerator.process_index % len(states)])
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as error:
        raise _damaged(place, error) from None
    return content["training_state"]


def adopt_checkpoint(place: Path, folder: Path, best_step: int | None) -> None:
    """Copy a checkpoint of another run, and the best one beside it, into this run's folder: it stands on its own."""
    if place.resolve().parent == folder.resolve():
        return
    wanted = {place.name} | ({checkpoint_name(best_step)} if best_step is not None else set())
    for name in [name for name in wanted if (place.parent / name).is_dir()]:
        unfinished = folder / f".{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(place.parent / name, unfinished)
        os.rename(unfinished, folder / name)


def load_weights(place: Path, model: torch.nn.Module) -> None:
    """Load a checkpoint's weights alone into the unwrapped model.

    Raises:
        UserError: the file is missing or damaged, or belongs to another model.
    """
    try:
        model.load_state_dict(load_file(place / "model.safetensors"))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _damaged(place, error) from None


def _read_state(place: Path) -> dict[str, Any]:
    try:
        content = json.loads((place / "state.json").read_text(encoding="utf-8"))
        return {"training_state": TrainingState(**content["training_state"]), "identity": dict(content["identity"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(place, error) from None


def _damaged(place: Path, error: Exception) -> UserError:
    return UserError(
        f"--resume_from_checkpoint: {place} cannot be read ({error}): name an earlier checkpoint, or remove this one"
    )


def _refuse_another_run(place: Path, saved: dict[str, Any], current: dict[str, Any]) -> None:
    for name, value in saved.items():
        if name == DATA and current.get(name) != value:
            raise UserError(
                f"--resume_from_checkpoint: {place} was trained with other sentences or labels: give the same data to "
                "go on, or start a new run in another --output_dir"
            )
        if current.get(name) != value:
            raise UserError(
                f"--{name} is {current.get(name)} but {place} was trained with {value}: "
                f"give --{name} {value} to go on, or start a new run in another --output_dir"
            )


def _rotate(folder: Path, newest: str, limit: int, best_step: int | None) -> None:
    best = checkpoint_name(best_step) if best_step is not None else None
    for abandoned in [path for path in list_checkpoints(folder) if path.name > newest]:
        _remove(abandoned)  # of the way that the run took before it was resumed from an earlier step
    for old in [path for path in list_checkpoints(folder)[:-limit] if path.name != best]:
        _remove(old)


def _remove(place: Path) -> None:
    """Delete a checkpoint under another name: a kill in the middle must not leave half of one under its own."""
    gone = place.with_name(f".{place.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(place, gone)
    shutil.rmtree(gone)


def _random_state() -> dict[str, Any]:
    numpy_state: Any = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()  # an array would need pickle's full powers
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _sync(path: Path) -> None:
    """Bring a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
