"""The files of a checkpoint: written, and read back with one line for what is not what it was.

`model.safetensors` has the weights, `training.pt` the state of optimizer, schedule and random numbers, and `state.json`
the rest. None of them can run code.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sst2.checkpoints.base_model import STATE
from sst2.checkpoints.folders import newest_checkpoint
from sst2.utils.errors import UserError
from sst2.utils.file_system import copy_mode

WEIGHTS, TRAINING = "model.safetensors", "training.pt"
Result = TypeVar("Result")

# What the libraries raise for a file that is not what they expect.
UNREADABLE: tuple[type[Exception], ...] = (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError)
UNREADABLE += (AttributeError, pickle.PickleError, SafetensorError)


def write_checkpoint(
    folder: Path, weights: dict[str, torch.Tensor], training: dict[str, Any], content: dict[str, Any]
) -> None:
    """Write the three files into an empty folder: weights in float32, training of what `weights_only=True` reads."""
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    _save_training(training, folder / TRAINING)
    (folder / STATE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    copy_mode(folder / WEIGHTS, like=folder / STATE)


def read_state(place: Path) -> Any:
    """The content of `state.json`. Raises UserError: it is missing or damaged."""
    return _read(place, STATE, lambda file: json.loads(file.read_text(encoding="utf-8")))


def read_training(place: Path) -> dict[str, Any]:
    """The content of `training.pt`, on the CPU. Raises UserError: it is missing or damaged."""
    return _read(place, TRAINING, lambda file: torch.load(file, map_location="cpu", weights_only=True))


def read_weights(place: Path) -> dict[str, torch.Tensor]:
    """All weights by name, on the CPU. Raises UserError: the file is missing or damaged."""
    return _read(place, WEIGHTS, load_file)


def damaged(place: Path, error: Exception | str) -> UserError:
    """What to raise where a checkpoint is not what it should be."""
    if newest := newest_checkpoint(place / "checkpoints"):
        return UserError(f"--resume_from_checkpoint: {place} is a run, not a checkpoint: give {newest}")
    return UserError(f"--resume_from_checkpoint: {place} cannot be read ({error}): name another checkpoint")


def _read(place: Path, name: str, read: Callable[[Path], Result]) -> Result:
    try:
        return read(place / name)
    except UNREADABLE as error:
        raise damaged(place, error) from None


def _save_training(training: dict[str, Any], file: Path) -> None:
    try:
        torch.save(training, file)
    except RuntimeError:  # such as "unexpected pos 576 vs 534": once more, in a slower way that says what the disk says
        with file.open("wb") as stream:
            torch.save(training, stream)


def require_moments_of_the_weights(optimizer: dict[str, Any], shapes: list[torch.Size]) -> None:
    """Raises ValueError: AdamW's fused kernel would read beyond the end of moments that are smaller than the weights.

    The shapes are of the weights, in the order of the optimizer's parameter groups.
    """
    for index, state in optimizer["state"].items():
        for name, shape in (("exp_avg", shapes[index]), ("exp_avg_sq", shapes[index]), ("step", torch.Size())):
            if not isinstance(state[name], torch.Tensor) or state[name].shape != shape:
                raise ValueError(f"training.pt: {name} of weight {index} is not of the shape {tuple(shape)}")
