"""Blocks of an encoder whose small operations, between the matrix products, are kernels: `--kernels triton`.

As with `last_block`, what a block computes has to be known: DistilBERT's, and the one that BERT has handed down. Others
stay as they are, and so does one that gives something else with the kernels, which is found out by trying.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import GELUActivation
from transformers.models.distilbert.modeling_distilbert import TransformerBlock

from sst2.data.packing import Pack
from sst2.kernels import obstacle
from sst2.models.architecture import display_name, encoder_blocks
from sst2.models.last_block import BERT_PARTS, LastDistilBertBlock, has_part
from sst2.models.packed_classifier import PackedClassifier
from sst2.utils.errors import shortened

logger = logging.getLogger(__name__)

Leaf = Callable[[nn.Parameter], torch.Tensor]
TOLERANCE = 1e-4  # of the largest output and the largest gradient of a block, in float32
TOLERANCE_IN_16_BITS = 0.05


def fuse_blocks(model: PackedClassifier, leaf: Leaf, dtype: torch.dtype) -> bool:
    """Have blocks computed so, in place; whether all of them are. A warning says why one is not.

    Args:
        model: on its device.
        leaf: what is computed with in place of a weight of a linear layer.
        dtype: of forward passes, float32 or that of autocast.
    """
    why_not = obstacle(model.device) or _unknown_block(model)
    for block in [] if why_not else encoder_blocks(model):
        expected = _tried(block, leaf, dtype)
        changed = _fuse_distilbert(block, leaf) if isinstance(block, TransformerBlock) else _fuse_bert(block, leaf)
        why_not = _difference(partial(_tried, block, leaf, dtype), expected, dtype)
        if why_not:
            for module, forward in changed:
                module.forward = forward
            break
    if why_not:
        logger.warning("--kernels triton %s: torch's small operations remain", why_not)
    return not why_not


def _unknown_block(model: PackedClassifier) -> str:
    for block in encoder_blocks(model):
        if not isinstance(block, TransformerBlock) and not all(has_part(block, part) for part in BERT_PARTS):
            return f"does not know the blocks of {display_name(model.config)} models"
    return ""


Changed = list[tuple[nn.Module, Callable[..., Any]]]  # modules, and the forward that they had


def _fuse_bert(block: Any, leaf: Leaf) -> Changed:
    outputs = [block.attention.output, block.output]
    changed = [(module, module.forward) for module in outputs]
    for module in outputs:
        module.forward = partial(_bert_output, module, leaf(module.dense.weight), leaf(module.dense.bias))
    if _is_gelu(block.intermediate.intermediate_act_fn):
        changed.append((block.intermediate, block.intermediate.forward))
        dense = block.intermediate.dense
        block.intermediate.forward = partial(_linear_gelu, leaf(dense.weight), leaf(dense.bias))
    return changed


def _bert_output(
    module: Any, weight: torch.Tensor, bias: torch.Tensor, hidden_states: torch.Tensor, input_tensor: torch.Tensor
) -> torch.Tensor:
    from sst2.kernels.block import add_norm

    probability = module.dropout.p if module.training else 0.0
    return add_norm(F.linear(hidden_states, weight), bias, input_tensor, module.LayerNorm, probability)


def _linear_gelu(weight: torch.Tensor, bias: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
    from sst2.kernels.block import bias_gelu

    return bias_gelu(F.linear(hidden_states, weight), bias)


def _fuse_distilbert(block: Any, leaf: Leaf) -> Changed:
    out_lin, lin1, lin2 = block.attention.out_lin, block.ffn.lin1, block.ffn.lin2
    changed = [(module, module.forward) for module in (block, out_lin)]
    out_lin.forward = partial(F.linear, weight=leaf(out_lin.weight))
    to_inner: Callable[[torch.Tensor], torch.Tensor] = partial(_linear_gelu, leaf(lin1.weight), leaf(lin1.bias))
    if not _is_gelu(block.ffn.activation):
        to_inner = _in_turn(lin1, block.ffn.activation)
    own = leaf(out_lin.bias), to_inner, leaf(lin2.weight), leaf(lin2.bias)
    block.forward = partial(_distilbert_block, block, *own)
    return changed


def _distilbert_block(
    block: Any,
    attention_bias: torch.Tensor,
    to_inner: Callable[[torch.Tensor], torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    pack: Pack | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    from sst2.kernels.block import add_norm

    if pack is not None and isinstance(block, LastDistilBertBlock):
        residual = hidden_states[:, pack.cls_indices]
        attended = block.attention_output(hidden_states, residual, pack)
    else:
        residual = hidden_states
        attended, _ = block.attention(hidden_states, attention_mask=attention_mask, pack=pack, **kwargs)
    attended = add_norm(attended, attention_bias, residual, block.sa_layer_norm, 0.0)
    probability = block.ffn.dropout.p if block.training else 0.0
    return add_norm(F.linear(to_inner(attended), weight), bias, attended, block.output_layer_norm, probability)


def _in_turn(*functions: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def run(tensor: torch.Tensor) -> torch.Tensor:
        for function in functions:
            tensor = function(tensor)
        return tensor

    return run


def _is_gelu(activation: nn.Module) -> bool:
    """Whether it is GELU by the error function, of which there are approximations."""
    return isinstance(activation, GELUActivation) and activation.act is F.gelu


def _tried(block: nn.Module, leaf: Leaf, dtype: torch.dtype) -> list[torch.Tensor]:
    """Without dropout, of two sentences: a block's output, and the gradients of its input and its weights."""
    weights = list(block.parameters())
    device, width = weights[0].device, next(module for module in block.modules() if type(module) is nn.LayerNorm)
    pack = Pack.of(np.array([3, 9])).to(device)
    generator = torch.Generator().manual_seed(0)  # the random state of training stays what it is
    shape = (1, pack.num_tokens, *width.normalized_shape)
    hidden = torch.randn(shape, generator=generator).to(device).requires_grad_()
    was_training, _ = block.training, block.eval()
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
    with torch.enable_grad(), autocast:
        output = block(hidden, attention_mask=None, pack=pack)
    block.train(was_training)
    output = output[0] if isinstance(output, tuple) else output
    factors = torch.linspace(-1, 1, output.numel(), device=device).view_as(output)
    leaves = [hidden, *(leaf(weight) for weight in weights)]
    gradients = torch.autograd.grad((output.float() * factors).sum(), leaves, allow_unused=True)
    tensors = (output, *(gradient for gradient in gradients if gradient is not None))
    return [tensor.detach().float() for tensor in tensors]


def _difference(again: Callable[[], list[torch.Tensor]], expected: list[torch.Tensor], dtype: torch.dtype) -> str:
    try:
        found = again()
    except Exception as error:  # whatever a compiler says on a machine that it was not made for
        return f"does not work here ({shortened(str(error))})"
    tolerance = TOLERANCE if dtype == torch.float32 else TOLERANCE_IN_16_BITS
    bounds = [tolerance * float(expected[0].abs().max())]
    bounds += [tolerance * max(float(gradient.abs().max()) for gradient in expected[1:])] * (len(expected) - 1)
    pairs = zip(found, expected, bounds, strict=True)
    is_close = all(float((one - other).abs().max()) <= bound for one, other, bound in pairs)
    return "" if is_close else "is wrong here"
