"""A classifier as an ONNX file: written by torch's exporter, quantized and run by onnxruntime.

Batch and length are free, the inputs `input_ids` and `attention_mask` int64, the output `logits` float32. onnx,
onnxscript and onnxruntime are imported in the functions that need them: nothing else in the project does.
"""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from sst2.utils.errors import UserError

OPSET = 20  # the first with Gelu as one operator
INPUTS = ("input_ids", "attention_mask")

Inputs = dict[str, np.ndarray]  # by name: (sentences, longest) int64
Classify = Callable[[Inputs], np.ndarray]  # to logits, (sentences, classes) float32


def require_onnx() -> None:
    """Raises UserError: a package is missing."""
    packages = ("onnx", "onnxruntime", "onnxscript")
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise UserError(f"--format onnx needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def write_onnx(model: PreTrainedModel, file: Path, attention: str = "eager") -> None:
    """Write the model as float32 ONNX, with weights inside and nothing about this machine.

    It is in evaluation mode. `attention` is transformers' implementation to write down: the plain one, `eager`, leaves
    fewer operators, which the quantized model gains from (benchmarks/onnx_variants.py).
    """
    import onnx

    before = model.config._attn_implementation
    # Two tensors: of one given twice, the exporter makes one input, and says nothing (torch 2.13).
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in INPUTS)
    try:
        model.set_attn_implementation(attention)
        with _without_needless_warnings():
            program = torch.onnx.export(
                _LogitsAlone(model).eval(),
                example,
                dynamo=True,  # the exporter that torch maintains; the one for TorchScript is deprecated
                opset_version=OPSET,
                input_names=INPUTS,
                output_names=["logits"],
                dynamic_shapes={name: {0: "batch", 1: "length"} for name in INPUTS},
                verbose=False,
            )
    finally:
        model.set_attn_implementation(before)
    assert program is not None  # it is without dynamo
    written = program.model_proto
    for node in written.graph.node:
        del node.metadata_props[:]  # stack traces, with the paths of this machine
    del written.graph.value_info[:]  # shapes, over which onnxruntime 1.23, the last for Python 3.10, stumbles
    onnx.save(written, file)


def quantize(
    file: Path, target: Path, per_channel: bool = True, reduce_range: bool = True, signed: bool = True
) -> None:
    """Write the float32 model in `file` with int8 weights; activations are quantized on the way, by their range.

    Args:
        file: the float32 model.
        target: to write.
        per_channel: a scale for each output of a matrix, not one for all of it.
        reduce_range: weights of 7 bits. With 8, sums of two products may not fit 16 bits, and CPUs of the x86 family
            without VNNI cut them off (onnxruntime, "Quantize ONNX models", section "When and why do I need to try
            U8U8?").
        signed: weights around 0; unsigned ones do not overflow either, and took longer than all others.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _without_needless_warnings():
        quantize_dynamic(
            file,
            target,
            per_channel=per_channel,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8 if signed else QuantType.QUInt8,
        )


def onnx_classifier(file: Path, threads: int) -> Classify:
    """The model in the file, on so many threads of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def classify(inputs: Inputs) -> np.ndarray:
        logits: np.ndarray = session.run(["logits"], inputs)[0]
        return logits

    return classify


def torch_classifier(model: PreTrainedModel) -> Classify:
    """The same of a model in torch, on the CPU and as many threads as torch has."""

    @torch.inference_mode()
    def classify(inputs: Inputs) -> np.ndarray:
        logits: np.ndarray = model(**{name: torch.from_numpy(values) for name, values in inputs.items()}).logits.numpy()
        return logits

    return classify


class _LogitsAlone(torch.nn.Module):
    """The model with its two inputs in order, and a tensor as output."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


@contextmanager
def _without_needless_warnings() -> Iterator[None]:
    """Silence what the libraries say of themselves in every export, each of it looked into; anything else is heard."""
    needless = (
        "torchvision is not installed",  # whose operators no classifier of texts has
        "Please consider to run pre-processing before quantization",  # it changes no operator of this graph
    )

    def is_needed(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(needless)

    loggers = [logging.getLogger(), logging.getLogger("torch.onnx._internal.exporter._registration")]
    for logger in loggers:
        logger.addFilter(is_needed)
    try:
        with warnings.catch_warnings():
            # torch's own use of its own name for part of a tree (torch 2.13)
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            # both inputs have the same length, as they should
            warnings.filterwarnings("ignore", "# The axis name: .* shares the same shape constraints", UserWarning)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_needed)
