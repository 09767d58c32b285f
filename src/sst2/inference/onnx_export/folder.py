"""The folder of an ONNX export: written, compared with torch, and described in `README.md` and `export.json`."""

import importlib.metadata
import logging
import os
import platform
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sst2.config.class_names import names_in_order, positive_class
from sst2.distributed.devices import processor
from sst2.inference.onnx_export.figures import (
    REFERENCE,
    TOLERANCE,
    Variant,
    figures_of,
    probe_batches,
    require_finite,
    require_same_logits,
)
from sst2.inference.onnx_export.onnx_card import FILES, onnx_card
from sst2.inference.onnx_export.onnx_model import OPSET, onnx_classifier, quantize, torch_classifier, write_onnx
from sst2.models.architecture import display_name
from sst2.models.loading import num_bytes
from sst2.utils.atomic_file import write_json

logger = logging.getLogger(__name__)

TOLERANCES = {"onnx_float32": TOLERANCE, "onnx_int8": float("inf")}
PACKAGES = ("onnx", "onnxruntime", "onnxscript", "torch", "transformers")


def versions() -> dict[str, str]:
    """Of what writes and runs the models."""
    return {package: importlib.metadata.version(package) for package in PACKAGES}


def write_files(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    title: str,
    int8: bool,
    data: tuple[str, Dataset] | None,
) -> dict[str, Any]:
    """Write all files of the export, the card and the figures last, when the models have proved themselves.

    Args:
        folder: exists, and is empty.
        model: in evaluation mode.
        tokenizer: of the model.
        title: name of the model, for the card.
        int8: whether a quantized model is wanted as well.
        data: name of a file, and its sentences, labeled by the model's classes.

    Returns:
        What `export.json` holds.

    Raises:
        UserError: the model's logits are not finite.
        RuntimeError: an exported model is not the model.
    """
    id2label: Any = model.config.id2label
    labels = names_in_order(id2label)
    tokenizer.save_pretrained(folder)  # before its first use, which would leave its padding in it
    model.config.save_pretrained(folder)
    batches, threads = probe_batches(tokenizer), torch.get_num_threads()
    variants = {REFERENCE: Variant(torch_classifier(model), num_bytes(model))}
    require_finite(variants[REFERENCE].classify, batches)
    steps = iter(range(1, 3 + int8))
    logger.info("%d of %d: writing the ONNX model", next(steps), 2 + int8)
    write_onnx(model, folder / FILES["onnx_float32"])
    if int8:
        logger.info("%d of %d: quantizing it to int8", next(steps), 2 + int8)
        quantize(folder / FILES["onnx_float32"], folder / FILES["onnx_int8"])
    differences = {}
    for name in [*FILES][: 1 + int8]:
        file = folder / FILES[name]
        variants[name] = Variant(onnx_classifier(file, threads), file.stat().st_size)
        differences[name] = require_same_logits(
            variants[REFERENCE].classify, variants[name].classify, batches, TOLERANCES[name]
        )
    measured = "accuracy and latency" if data else "latency"
    logger.info("%d of %d: measuring %s", next(steps), 2 + int8, measured)
    figures = figures_of(variants, tokenizer, data and data[1], positive=positive_class(labels))
    report = {
        "model": title,
        "architecture": display_name(model.config),
        "format": "onnx",
        "opset": OPSET,
        "labels": labels,
        "max_length": tokenizer.model_max_length,
        "probes": {
            "batches": [list(inputs["input_ids"].shape) for inputs in batches],
            "largest_logit_difference": differences,
            "tolerance": TOLERANCE,
        },
        "measured_on": data[0] if data else "sentences of the project's sample, without labels",
        "machine": f"{os.cpu_count()} x {processor()}",
        "threads": threads,
        "versions": {"python": platform.python_version()} | versions(),
        "forms": figures,
    }
    (folder / "README.md").write_text(onnx_card(report), encoding="utf-8")
    write_json(folder / "export.json", report)
    return report
