"""One classifier in several forms: whether they give the same answers, and how accurate, large and fast each is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sst2.data.mapped_dataset import labels_of
from sst2.data.sample import sample_sentences
from sst2.inference.onnx_export.latency import measure_latency
from sst2.inference.onnx_export.onnx_model import INPUTS, Classify, Inputs
from sst2.utils.console import Progress
from sst2.utils.errors import UserError

PROBES = 128  # sentences of the sample, to be classified where there is no file
PROBE_BATCHES = (1, 2, 7, 32)  # sentences
TOLERANCE = 1e-4  # between logits of torch and ONNX in float32, which adds up in another order
ROUNDS = 10
CALLS = {1: 20, 32: 4}  # by sentences of a call: calls in a round
REFERENCE = "torch_float32"


@dataclass(frozen=True)
class Variant:
    """The classifier in one form.

    Attributes:
        classify: its logits.
        bytes: of its weights, or its file.
    """

    classify: Classify
    bytes: int


def padded(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> Inputs:
    """Token ids and mask of a batch, padded to its longest sentence and cut as the tokenizer says."""
    encoded = tokenizer(list(sentences), padding=True, truncation=True, return_tensors="np")
    return {name: encoded[name].astype(np.int64) for name in INPUTS}


def probe_batches(tokenizer: PreTrainedTokenizerBase) -> list[Inputs]:
    """Batches of several sizes and lengths: from one word to as many tokens as sentences may have, alone and padded."""
    sentences = sample_sentences("validation")[0]
    longest = " ".join(sentences)  # thousands of words
    batches = [sentences[:size] for size in PROBE_BATCHES]
    batches += [["good"], [longest], [sentences[0], longest, "good"]]
    return [padded(tokenizer, batch) for batch in batches]


def require_finite(classify: Classify, batches: Sequence[Inputs]) -> None:
    """Raises UserError: the model itself gives logits that are not finite."""
    if not all(np.isfinite(classify(inputs)).all() for inputs in batches):
        raise UserError("MODEL gives logits that are not finite: its weights are damaged; train it again")


def require_same_logits(
    reference: Classify, other: Classify, batches: Sequence[Inputs], tolerance: float = TOLERANCE
) -> float:
    """Largest difference between the logits of two forms. A tolerance of infinity requires finite ones only.

    Raises:
        RuntimeError: it is more than the tolerance.
    """
    largest = 0.0
    for inputs in batches:
        expected, given = reference(inputs), other(inputs)
        fits = given.shape == expected.shape and np.isfinite(given).all()
        difference = float(np.abs(expected - given).max()) if fits else float("nan")
        if not difference <= tolerance:
            sentences, length = inputs["input_ids"].shape
            raise RuntimeError(
                f"the exported model gives other logits than torch, by {difference}, for {sentences} sentences of "
                f"{length} tokens: nothing was written"
            )
        largest = max(largest, difference)
    return largest


def figures_of(
    variants: dict[str, Variant],
    tokenizer: PreTrainedTokenizerBase,
    data: Dataset | None,
    rounds: int = ROUNDS,
    positive: int = 1,
) -> dict[str, dict[str, Any]]:
    """What is to be said of each form, by name.

    Each sentence is classified by itself. Accuracy is measured where there are labels, and so is its difference to
    `REFERENCE` on the same sentences, with a paired bootstrap's interval and McNemar's p.

    Args:
        variants: `REFERENCE` and others, by name.
        tokenizer: of the model.
        data: all of it labeled by the model's classes; the sample's first sentences, without labels, if None.
        rounds: of measuring latency.
        positive: of two classes, number of the positive one, for F1; more have the macro average.

    Raises:
        RuntimeError: a logit is not finite.
    """
    sentences = sample_sentences("validation")[0][:PROBES] if data is None else data["sentence"][:]
    logits = {name: _logits(name, variant.classify, tokenizer, sentences) for name, variant in variants.items()}
    reference = logits[REFERENCE]
    figures: dict[str, dict[str, Any]] = {}
    for name, variant in variants.items():
        same = logits[name].argmax(axis=1) == reference.argmax(axis=1)
        figures[name] = {
            "megabytes": variant.bytes / 1e6,
            "same_predictions": float(same.mean()),
            "largest_logit_difference": float(np.abs(logits[name] - reference).max()),
        }
        if data is not None:
            figures[name] |= _accuracy(logits[name], reference, labels_of(data), positive)
    for size, calls in CALLS.items():
        # evenly from all over the file, which may be sorted
        rows = np.linspace(0, len(sentences) - 1, size * calls).round().astype(int).reshape(calls, size)
        batches = [padded(tokenizer, [sentences[row] for row in batch]) for batch in rows]
        tokens = float(np.mean([inputs["attention_mask"].sum(axis=1).mean() for inputs in batches]))
        classifiers = {name: variant.classify for name, variant in variants.items()}
        with Progress(total=rounds, desc=f"measuring latency, batch {size}", unit=" rounds") as bar:
            latencies = measure_latency(classifiers, batches, rounds, bar.update)
        for name, latency in latencies.items():
            figures[name][f"batch_{size}"] = latency | {"tokens_of_a_sentence": tokens}
    return figures


def _logits(name: str, classify: Classify, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> np.ndarray:
    bar = Progress(sentences, f"classifying by {name}", unit=" sentences")
    logits = np.concatenate([classify(padded(tokenizer, [sentence])) for sentence in bar])
    if not np.isfinite(logits).all():
        raise RuntimeError("the exported model gives logits that are not finite: nothing was written")
    return logits


def _accuracy(logits: np.ndarray, reference: np.ndarray, labels: np.ndarray, positive: int) -> dict[str, Any]:
    from sst2.evaluation.metrics import ClassificationMetric  # half a second that is only needed here
    from sst2.evaluation.predictions import f1_name
    from sst2.evaluation.significance import compare_accuracy

    classes = logits.shape[1]
    if classes == 2 and positive == 0:  # the metric's positive class is 1
        logits, reference, labels = logits[:, ::-1], reference[:, ::-1], 1 - labels
    lengths = np.ones(len(labels), dtype=np.int64)  # of which only accuracy by length would speak
    metric = ClassificationMetric([str(number) for number in range(classes)])
    metrics = metric.compute(predictions=logits, references=labels, lengths=lengths)
    right, expected = (values.argmax(axis=1) == labels for values in (logits, reference))
    found = compare_accuracy(right[None], expected[None])
    difference = {"value": found.value, "ci95": [found.low, found.high], "p": found.p_value}
    return {name: metrics[name] for name in ("accuracy", "accuracy_ci95", f1_name(metrics), "loss", "count")} | {
        "accuracy_difference_to_torch": difference
    }
