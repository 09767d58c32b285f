"""The export: a stock model's folder with tokenizer and model card, reloaded and compared before it counts."""

import copy
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sst2.config.settings import Settings
from sst2.models.architecture import classifier_class, display_name, tiny
from sst2.models.model_card import model_card, placeholder_metrics
from sst2.models.tokenizer import probes
from sst2.runs.run_folder import WEIGHTS
from sst2.utils.atomic_folder import commit
from sst2.utils.checksums import describe_file
from sst2.utils.errors import DISK_ERRORS, UserError, disk_error, first_line, no_room
from sst2.utils.file_system import copy_mode
from sst2.utils.removal import UNFINISHED, discard, hidden_name, put_aside

logger = logging.getLogger(__name__)

PROBES = 32  # sentences whose logits are compared after reloading


@dataclass(frozen=True)
class Export:
    """A trained model, as it is to be written.

    Attributes:
        config: of the trained model.
        weights: all of them by name, on any device.
        tokenizer: of the trained model. In the folder it has the length of training as `model_max_length`, which
            programs cut to unless told otherwise.
        sentences: some texts; the first `PROBES` of them are classified before and after reloading.
        card: the model card, markdown.
        max_length: tokens that sentences were cut to in training; the tokenizer's own limit if None.
        expected: (sentences, classes) logits of the trained model in its wrappers, where it ran in float32.
    """

    config: PreTrainedConfig
    weights: dict[str, torch.Tensor]
    tokenizer: PreTrainedTokenizerBase
    sentences: Sequence[str]
    card: str
    max_length: int | None = None
    expected: np.ndarray | None = None

    def write(self, folder: Path) -> str:
        """Write `folder` as `transformers.pipeline` expects it; it appears only after it proved to be the model.

        One that is the model already is left as it is.

        Returns:
            The SHA-256 of the exported weights.

        Raises:
            RuntimeError: the reloaded model gives other logits.
        """
        logger.info("exporting the model to %s", folder)
        unfinished = hidden_name(folder, UNFINISHED)
        require_same = self.write_files(unfinished)
        digest: str = describe_file(unfinished / WEIGHTS)["sha256"]
        if _is_exported(folder, digest, require_same):
            discard(unfinished)  # what its user has added, or written into the card, stays
        else:
            if os.path.lexists(onnx := folder.with_name("onnx")):  # made of the model that goes now
                discard(put_aside(onnx))
            commit(unfinished, folder)
        return digest

    def write_files(self, folder: Path) -> Callable[[Path], None]:
        """Write a new folder, and compare it with the model.

        Returns:
            What compares another folder with the model likewise.

        Raises:
            RuntimeError: the reloaded model gives other logits.
        """
        stock = stock_classifier(self.config, self.weights)
        tokenizer = copy.deepcopy(self.tokenizer)  # its use would leave padding in it
        tokenizer.model_max_length = self.max_length or tokenizer.model_max_length
        stock.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        copy_mode(folder / WEIGHTS, like=folder / "config.json")
        # the name of a file of data may hold bytes that are no UTF-8
        (folder / "README.md").write_text(self.card, encoding="utf-8", errors="backslashreplace")
        sentences = self.sentences[:PROBES]
        before = _logits(stock, tokenizer, sentences)

        def require_same(folder: Path) -> None:
            model = AutoModelForSequenceClassification.from_pretrained(folder)
            after = _logits(model, AutoTokenizer.from_pretrained(folder), sentences)
            message = f"the exported model in {folder} gives other logits than before it was saved"
            _require_close(before, after, 1e-5, message)
            if self.expected is not None:  # another device and other padding: close, not equal
                evaluated = torch.from_numpy(self.expected[: len(sentences)])
                message = f"the model in {folder} gives other logits than the evaluated one"
                _require_close(evaluated, after, 1e-2, message)

        require_same(folder)
        return require_same


def _is_exported(folder: Path, digest: str, require_same: Callable[[Path], None]) -> bool:
    """Whether the folder has these weights, by their SHA-256, and gives their logits."""
    try:
        if describe_file(folder / WEIGHTS)["sha256"] != digest:
            return False
        require_same(folder)
    except Exception:  # whatever a library says of a damaged file
        return False
    return True


def rehearse_export(settings: Settings, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Export a tiny model with this tokenizer, reload it and write its card, so that no training is lost to the end.

    It draws from torch's random state.

    Raises:
        UserError: the export would fail.
        LocalError: the folder for temporary files, $TMPDIR, is full or absent.
    """
    config = tiny(config)
    weights, texts = classifier_class(config)(config).state_dict(), probes(tokenizer.backend_tokenizer)
    try:
        temporary = tempfile.TemporaryDirectory(prefix="sst2-rehearsal-")
    except OSError as error:
        raise no_room(error) from None
    try:
        with temporary as folder:
            card = model_card(settings, placeholder_metrics(settings.label_names), 0, display_name(config))
            Export(config, weights, tokenizer, texts, card, settings.max_length).write_files(Path(folder) / "model")
    except Exception as error:  # of libraries that have their own
        disk = disk_error(error)
        if disk is not None and disk.errno in DISK_ERRORS:
            raise no_room(disk) from None
        raise UserError(
            f"{settings.model_name_or_path} trained into {settings.run_dir} could not be exported: {first_line(error)}"
        ) from None


def stock_classifier(config: PreTrainedConfig, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """A stock model around trained weights: autocast, compilation or a strategy may have patched the trained one."""
    config = copy.deepcopy(config)
    config._attn_implementation = None  # transformers' choice, not the packed one
    stock = classifier_class(config)(config)
    stock.load_state_dict(weights)
    return stock


def _require_close(one: torch.Tensor, other: torch.Tensor, tolerance: float, message: str) -> None:
    difference = (one - other).abs().max().item()
    if not difference <= tolerance:
        raise RuntimeError(f"{message}, by {difference}")


@torch.inference_mode()
def _logits(model: Any, tokenizer: Any, sentences: Sequence[str]) -> torch.Tensor:
    inputs = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    logits: torch.Tensor = model.eval()(**inputs).logits
    return logits
