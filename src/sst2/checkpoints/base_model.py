"""The base model: its fingerprint, and what of it a checkpoint keeps for a run that is resumed.

A checkpoint has every weight. With the configuration and the tokenizer beside them, a run goes on where the folder that
it started from is gone, or has another name.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from sst2.checkpoints.folders import own_checkpoints
from sst2.config.flag_groups import SAMPLE
from sst2.config.settings import Settings, is_path
from sst2.models.loading import num_bytes
from sst2.models.packed_classifier import PackedClassifier
from sst2.runs.run_folder import RunFolder, is_finished
from sst2.utils.checksums import DamagedFolderError, verify_folder
from sst2.utils.errors import UserError

STATE = "state.json"
FINGERPRINT = "base_model"  # in that file
# What says nothing of how the model computes, or is fixed by settings of its own.
IGNORED = {"_name_or_path", "transformers_version", "architectures", "dtype", "id2label", "label2id"}


@dataclass(frozen=True)
class BaseModel:
    """Of the model before its first step.

    Attributes:
        num_bytes: of its weights, in float32.
        fingerprint: SHA-256 of its `configuration`, `weights` and `tokenizer`. Weights that are drawn, such as a new
            head's, follow from the seed and are left out.
        checkpoint: what stands for it, as in `of`; its weights have to come from there as well.
    """

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    num_bytes: int
    fingerprint: dict[str, str]
    checkpoint: Path | None

    @classmethod
    def of(cls, model: PackedClassifier, tokenizer: PreTrainedTokenizerBase, place: Path | None) -> "BaseModel":
        """Describe a model that a strategy has not spread yet.

        In its `place` may stand what `checkpoint_for_base_model` has found, of which an export has no fingerprint.
        """
        if place is None:
            configuration = {key: value for key, value in model.config.to_dict().items() if key not in IGNORED}
            fingerprint = {
                "configuration": _of_json(configuration),
                "weights": _of_weights(model),
                "tokenizer": _of_tokenizer(tokenizer),
            }
        else:
            fingerprint = _state(place).get(FINGERPRINT, {}) if (place / STATE).exists() else {}
        return cls(model.config, tokenizer, num_bytes(model), fingerprint, place)

    def save(self, folder: Path) -> None:
        """Write what a resumed run needs besides weights."""
        self.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def checkpoint_for_base_model(settings: Settings) -> Path | None:
    """The checkpoint whose configuration and tokenizer a resumed run takes, in place of the base model's.

    Of a run that has finished and keeps no checkpoint it is the exported model: there is nothing left to train.

    None where the base model is to be read: in a new run, and where another name for it was given, so that it has to be
    compared. Weights are not looked at: `Checkpointer.find` verifies them.

    Raises:
        UserError: the base model is to be read and is not there.
    """
    requested = settings.resume_from_checkpoint
    if requested is None or settings.model_name_or_path == SAMPLE:
        return None
    found = own_checkpoints(settings.run_dir / "checkpoints") if requested == "auto" else [Path(requested)]
    for place in reversed(found):
        with suppress(DamagedFolderError, OSError, ValueError, LookupError, TypeError):
            verify_folder(place, but=("model.safetensors", "training.pt"))
            content = _state(place)
            if _same_name(content["settings"], vars(settings)):
                return place
    run = RunFolder(settings.run_dir)
    if not found and is_finished(run):
        return run.model
    name = settings.model_name_or_path
    if is_path(name) and not Path(name).is_dir():
        raise UserError(f"--model_name_or_path {name} does not exist as a folder, and no checkpoint stands for it")
    return None


def _same_name(saved: dict[str, Any], current: dict[str, Any]) -> bool:
    """Whether two settings name the same base model, by the same path or the same revision of a name."""
    paths = [os.path.normpath(one["model_name_or_path"]) for one in (saved, current)]
    return bool(paths[0] == paths[1] and saved["model_revision"] == current["model_revision"])


def _state(place: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((place / STATE).read_text(encoding="utf-8"))
    return state


def _of_json(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _of_weights(model: PackedClassifier) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if name not in model.drawn:
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    content = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    content |= {"pad_token_id": tokenizer.pad_token_id, "model_max_length": tokenizer.model_max_length}
    return _of_json(content)
