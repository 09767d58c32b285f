"""What each way to export a classifier to ONNX is worth: accuracy, agreement with torch, size, latency.

    python benchmarks/onnx_variants.py runs/NAME --validation_file dev.tsv --output benchmarks/results/onnx.json

`sst2 export` writes `onnx_float32` and `onnx_int8`. The others are what it might write: transformers' other
attention, one scale for a whole matrix, weights of 8 bits, and unsigned ones. All of them take turns on the same
sentences. Batches of 32 are evaluated as well, since quantized logits depend on the batch.

`overflows` counts the pairs of int8 weights whose sum of products with activations of 255 leaves 16 bits: CPUs of the
x86 family without VNNI (AVX2, AVX-512 before it) cut such sums off, which a CPU with VNNI does not show.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset

from sst2.data.checked_rows import read_file
from sst2.data.mapped_dataset import labels_of
from sst2.distributed.devices import processor
from sst2.inference.onnx_export.figures import REFERENCE, Variant, figures_of, padded
from sst2.inference.onnx_export.folder import versions
from sst2.inference.onnx_export.onnx_model import onnx_classifier, quantize, torch_classifier, write_onnx
from sst2.models.export import stock_classifier
from sst2.models.loading import load_classifier, num_bytes
from sst2.runs.run_folder import RunFolder
from sst2.utils.logs import start_logging

RECIPE = "num_train_epochs global_batch_size learning_rate mixed_precision seed"
INT8: dict[str, dict[str, Any]] = {
    "onnx_int8": {},
    "onnx_int8_8_bits": {"reduce_range": False},
    "onnx_int8_per_matrix": {"per_channel": False},
    "onnx_int8_per_matrix_8_bits": {"per_channel": False, "reduce_range": False},
    "onnx_uint8_per_matrix_8_bits": {"per_channel": False, "reduce_range": False, "signed": False},
}


def main() -> None:
    """Measure, print the figures, and write them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--validation_file", required=True, help="labeled sentences")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    start_logging(is_main=True)
    data = read_file(arguments.validation_file, labels_required=True)
    loaded, tokenizer = load_classifier("RUN", str(RunFolder(arguments.run).model))
    model = stock_classifier(loaded.config, loaded.state_dict()).eval()
    with tempfile.TemporaryDirectory() as folder:
        variants = make_forms(model, Path(folder))
        figures = figures_of(variants, tokenizer, data)
        overflows = {name: count_overflows(Path(folder) / f"{name}.onnx") for name in INT8}
        in_batches = batched(variants, tokenizer, data)
    for name in figures:
        figures[name] |= in_batches[name] | ({"overflows": overflows[name]} if name in overflows else {})
    settings = yaml.safe_load(RunFolder(arguments.run).resolved.read_text(encoding="utf-8"))
    described = {
        "what": "a fine-tuned classifier in torch and as ONNX; each sentence by itself unless a batch is named",
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}",
        "machine": f"{os.cpu_count()} x {processor()}",
        "load_average": round(os.getloadavg()[0], 1),  # other work on the machine, and this one
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | versions(),
        "model": Path(settings["model_name_or_path"]).name,
        "parameters": model.num_parameters(),
        "recipe": {name: settings[name] for name in RECIPE.split()},
        "sentences": len(data),
        "forms": figures,
    }
    print(json.dumps(described, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def make_forms(model: Any, folder: Path) -> dict[str, Variant]:
    """All forms by name, their files in `folder`."""
    threads = torch.get_num_threads()
    write_onnx(model, folder / "onnx_float32.onnx")
    write_onnx(model, folder / "onnx_float32_sdpa.onnx", attention="sdpa")
    for name, how in INT8.items():
        quantize(folder / "onnx_float32.onnx", folder / f"{name}.onnx", **how)
    quantize(folder / "onnx_float32_sdpa.onnx", folder / "onnx_int8_sdpa.onnx")
    variants = {REFERENCE: Variant(torch_classifier(model), num_bytes(model))}
    for name in ("onnx_float32", "onnx_float32_sdpa", *INT8, "onnx_int8_sdpa"):
        file = folder / f"{name}.onnx"
        variants[name] = Variant(onnx_classifier(file, threads), file.stat().st_size)
    return variants


def batched(variants: dict[str, Variant], tokenizer: Any, data: Dataset, size: int = 32) -> dict[str, Any]:
    """Accuracy in batches in the file's order, and by how much logits differ from those of torch."""
    batches = [padded(tokenizer, data["sentence"][start : start + size]) for start in range(0, len(data), size)]
    logits = {
        name: np.concatenate([variant.classify(inputs) for inputs in batches]) for name, variant in variants.items()
    }
    return {
        name: {
            f"accuracy_in_batches_of_{size}": float((values.argmax(axis=1) == labels_of(data)).mean()),
            f"largest_logit_difference_in_batches_of_{size}": float(np.abs(values - logits[REFERENCE]).max()),
        }
        for name, values in logits.items()
    }


def count_overflows(file: Path) -> int:
    """Pairs of weights, next to each other in a sum, whose products with 255 add up to more than 16 bits hold."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    inputs = {node.input[1] for node in graph.node if node.op_type == "MatMulInteger"}
    count = 0
    for tensor in graph.initializer:
        if tensor.name in inputs and tensor.data_type == onnx.TensorProto.INT8:
            weights = numpy_helper.to_array(tensor).astype(np.int64)  # (in, out)
            highest = 255 * (np.maximum(weights[0::2], 0) + np.maximum(weights[1::2], 0))
            lowest = 255 * (np.minimum(weights[0::2], 0) + np.minimum(weights[1::2], 0))
            count += int(((highest > 2**15 - 1) | (lowest < -(2**15))).sum())
    return count


if __name__ == "__main__":
    main()
