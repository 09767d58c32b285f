"""The card of an ONNX export, and the table of its forms."""

from typing import Any

from sst2.config.class_names import in_words
from sst2.models.model_card import example_sentence

FILES = {"onnx_float32": "model.onnx", "onnx_int8": "model_int8.onnx"}  # by form
NAMES = {"torch_float32": "torch, float32", "onnx_float32": "ONNX, float32", "onnx_int8": "ONNX, int8"}
HEADER = """---
library_name: onnx
pipeline_tag: text-classification
tags: [{tag}, onnx]
---"""
USAGE = """```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.enable_truncation({max_length})
session = onnxruntime.InferenceSession("{file}")

encoded = tokenizer.encode("{example}")
inputs = {{"input_ids": np.array([encoded.ids]), "attention_mask": np.array([encoded.attention_mask])}}
(logits,) = session.run(["logits"], inputs)
print({labels}[logits[0].argmax()])
```"""


def onnx_card(report: dict[str, Any]) -> str:
    """Markdown, of what `export.json` holds: use of the files, how they were checked, what they are worth."""
    labels, variants, architecture = report["labels"], report["forms"], report["architecture"]
    file = FILES["onnx_int8" if "onnx_int8" in variants else "onnx_float32"]
    parts = [
        HEADER.format(tag=architecture.lower()),
        f"# {report['model']}, ONNX",
        f"A {architecture} classifier with the classes {in_words(labels)}. It needs onnxruntime 1.20 or later and "
        "tokenizers, neither torch nor transformers. In this folder:",
        USAGE.format(
            max_length=report["max_length"], file=file, labels=tuple(labels), example=example_sentence(labels)
        ),
        f"ONNX opset {report['opset']}; inputs `input_ids` and `attention_mask`, int64, (sentences, length), checked "
        f"with up to {report['max_length']} tokens; output `logits`, float32, (sentences, {len(labels)}).",
        "## Checked",
        *_checked(report["probes"], variants),
        "## Measured",
        table(report),
        _circumstances(report),
    ]
    return "\n\n".join(parts) + "\n"


def table(report: dict[str, Any]) -> str:
    """Markdown, one line for each form."""
    variants = report["forms"]
    labeled = "accuracy" in variants["torch_float32"]
    columns = ["form", "file", "MB", *(["accuracy", "95 % interval"] if labeled else []), "predicts as torch"]
    lines = [[*columns, "ms, batch 1", "ms, batch 32"]]
    lines.append(["---"] * len(lines[0]))
    for name, figures in variants.items():
        line = [NAMES[name], f"`{FILES[name]}`" if name in FILES else "", f"{figures['megabytes']:.1f}"]
        if labeled:
            low, high = figures["accuracy_ci95"]
            line += [f"{figures['accuracy']:.4f}", f"{low:.4f} to {high:.4f}"]
        line.append(_percent(figures["same_predictions"]) if name in FILES else "")
        for batch in ("batch_1", "batch_32"):
            times = figures[batch]
            line.append(f"{times['median_ms']:.2f} ({times['p5_ms']:.2f} to {times['p95_ms']:.2f})")
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _checked(probes: dict[str, Any], variants: dict[str, Any]) -> list[str]:
    """Paragraphs on how close the files are to the model in torch."""
    largest = probes["largest_logit_difference"]
    sizes = ", ".join(f"{sentences} x {length}" for sentences, length in probes["batches"])
    paragraphs = [
        f"The float32 logits are those of torch, with differences up to {largest['onnx_float32']:.1e} (allowed: "
        f"{probes['tolerance']:g}) on batches of sentences x tokens: {sizes}."
    ]
    if "onnx_int8" not in variants:
        return paragraphs
    figures = variants["onnx_int8"]
    on_int8 = [
        "The int8 model has its weights in 7 bits with a scale for each output, so that no CPU's sums overflow, and "
        "quantizes activations on the way by the range of the whole batch: a sentence's logits depend a little on "
        "those beside it.",
        f"Of the sentences measured below, each by itself, it gives {_percent(figures['same_predictions'])} the class "
        f"that torch gives; its logits differ by up to {figures['largest_logit_difference']:.2g}.",
    ]
    if "accuracy" in figures:
        difference = figures["accuracy_difference_to_torch"]
        low, high = difference["ci95"]
        on_int8.append(
            f"Its accuracy differs from torch's by {difference['value']:+.4f} on the same {figures['count']} sentences "
            f"(95 % interval by a paired bootstrap {low:+.4f} to {high:+.4f}, McNemar's p {difference['p']:.2g})."
        )
    return [*paragraphs, " ".join(on_int8)]


def _circumstances(report: dict[str, Any]) -> str:
    versions, threads = report["versions"], report["threads"]
    tokens = report["forms"]["torch_float32"]["batch_1"]["tokens_of_a_sentence"]
    return (
        f"On {report['measured_on']}; {report['machine']}, {threads} thread{'s' if threads > 1 else ''}; onnxruntime "
        f"{versions['onnxruntime']}, torch {versions['torch']}, transformers {versions['transformers']}. Latency: "
        "milliseconds of a call, model alone, medians with 5th and 95th percentile, forms taking turns; sentences have "
        f"{tokens:.0f} tokens on average, and those of a batch of 32 are padded to its longest. `export.json` has all "
        "figures."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
