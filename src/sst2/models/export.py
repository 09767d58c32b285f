"""The export: a stock DistilBERT folder with tokenizer and model card, reloaded and compared before it counts."""

import copy
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerBase,
)

from sst2.config.settings import Settings
from sst2.models.model_card import model_card
from sst2.models.tokenizer import probes
from sst2.runs.run_folder import WEIGHTS
from sst2.utils.atomic_folder import commit, describe_file
from sst2.utils.errors import DISK_ERRORS, UserError, disk_error, first_line, no_room
from sst2.utils.file_system import copy_mode
from sst2.utils.removal import UNFINISHED, discard, hidden_name, put_aside

PROBES = 32  # sentences whose logits are compared after reloading


def export_model(
    config: DistilBertConfig,
    weights: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    card: str,
    folder: Path,
    max_length: int,
    expected: np.ndarray | None = None,
) -> str:
    """Write `folder` as `transformers.pipeline` expects it; the folder appears only after it proved to be the model.

    One that is the model already is left as it is.

    Args:
        config: of the trained model.
        weights: all of them by name, on any device.
        tokenizer: of the trained model.
        sentences: some texts; the first `PROBES` of them are classified before and after reloading.
        card: the model card, markdown.
        folder: to write.
        max_length: tokens that sentences were cut to in training, to which programs cut by `model_max_length` as well.
        expected: (sentences, 2) logits of the trained model in its wrappers, where it ran in float32.

    Returns:
        The SHA-256 of the exported weights.

    Raises:
        RuntimeError: the reloaded model gives other logits.
    """
    stock = stock_classifier(config, weights)
    tokenizer = copy.deepcopy(tokenizer)  # its use would leave padding in it
    tokenizer.model_max_length = max_length
    unfinished = hidden_name(folder, UNFINISHED)
    stock.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    copy_mode(unfinished / WEIGHTS, like=unfinished / "config.json")
    # the name of a file of data may hold bytes that are no UTF-8
    (unfinished / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
    compare = partial(_compare, stock, tokenizer, sentences[:PROBES], max_length, expected)
    compare(unfinished)
    digest: str = describe_file(unfinished / WEIGHTS)["sha256"]
    if _is_exported(folder, digest, compare):
        discard(unfinished)  # what its user has added, or written into the card, stays
    else:
        if os.path.lexists(onnx := folder.with_name("onnx")):  # made of the model that goes now
            discard(put_aside(onnx))
        commit(unfinished, folder)
    return digest


def _is_exported(folder: Path, digest: str, compare: Callable[[Path], None]) -> bool:
    """Whether the folder has these weights, by their SHA-256, and gives their logits."""
    try:
        is_same: bool = describe_file(folder / WEIGHTS)["sha256"] == digest
        if is_same:
            compare(folder)
    except Exception:  # whatever a library says of a damaged file
        return False
    return is_same


def rehearse_export(settings: Settings, config: DistilBertConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Export a tiny model with this tokenizer, reload it and write its card, so that no training is lost to the end.

    It draws from torch's random state.

    Raises:
        UserError: the export would fail.
        LocalError: the folder for temporary files, $TMPDIR, is full or absent.
    """
    tiny = {"n_layers": 1, "n_heads": 2, "dim": 16, "hidden_dim": 16, "initializer_range": 0.1}
    config = DistilBertConfig(**config.to_dict() | tiny)
    names = "accuracy precision recall f1 matthews roc_auc loss ece count split step epoch checkpoint selected".split()
    metrics = dict.fromkeys(names, 0) | {"accuracy_ci95": (0, 1)}
    weights, texts = DistilBertForSequenceClassification(config).state_dict(), probes(tokenizer.backend_tokenizer)
    try:
        temporary = tempfile.TemporaryDirectory(prefix="sst2-rehearsal-")
    except OSError as error:
        raise no_room(error) from None
    try:
        with temporary as folder:
            card = model_card(settings, metrics, 0)
            export_model(config, weights, tokenizer, texts, card, Path(folder) / "model", settings.max_length)
    except Exception as error:  # of libraries that have their own
        disk = disk_error(error)
        if disk is not None and disk.errno in DISK_ERRORS:
            raise no_room(disk) from None
        raise UserError(
            f"{settings.model_name_or_path} trained into {settings.run_dir} could not be exported: {first_line(error)}"
        ) from None


def stock_classifier(config: DistilBertConfig, weights: dict[str, torch.Tensor]) -> DistilBertForSequenceClassification:
    """A stock model around trained weights: autocast, compilation or a strategy may have patched the trained one."""
    config = copy.deepcopy(config)
    config._attn_implementation = None  # transformers' choice, not the packed one
    stock = DistilBertForSequenceClassification(config)
    stock.load_state_dict(weights)
    return stock


def _compare(
    model: DistilBertForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    max_length: int,
    expected: np.ndarray | None,
    folder: Path,
) -> None:
    reloaded_model = AutoModelForSequenceClassification.from_pretrained(folder)
    reloaded_tokenizer = AutoTokenizer.from_pretrained(folder)
    before = _logits(model, tokenizer, sentences, max_length)
    after = _logits(reloaded_model, reloaded_tokenizer, sentences, max_length)
    _require_close(before, after, 1e-5, f"the exported model in {folder} gives other logits than before it was saved")
    if expected is not None:  # another device and other padding: close, not equal
        trained = torch.from_numpy(expected[: len(sentences)])
        _require_close(trained, after, 1e-2, f"the model in {folder} gives other logits than the evaluated one")


def _require_close(one: torch.Tensor, other: torch.Tensor, tolerance: float, message: str) -> None:
    difference = (one - other).abs().max().item()
    if not difference <= tolerance:
        raise RuntimeError(f"{message}, by {difference}")


@torch.inference_mode()
def _logits(model: Any, tokenizer: Any, sentences: Sequence[str], max_length: int) -> torch.Tensor:
    model.eval()
    inputs = tokenizer(sentences, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    logits: torch.Tensor = model(**inputs).logits
    return logits
