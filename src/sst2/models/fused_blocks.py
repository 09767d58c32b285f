"""Blocks of an encoder whose small operations, between the matrix products, are kernels: `--kernels triton`.

As with `last_block`, what a block computes has to be known: DistilBERT's, and the one that BERT has handed down. Others
stay as they are, and so does one that gives something else with the kernels, which is found out by trying.
"""

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

Leaf = Callable[[nn.Parameter], torch.Tensor]
Changed = list[tuple[nn.Module, Callable[..., Any]]]  # modules, and the forward that they had
TOLERANCE = 1e-4  # of the largest of an output or of a gradient, in float32
TOLERANCE_IN_16_BITS = 0.05
FLOOR = 0.05  # of the largest gradient of a block: of smaller ones, as of the bias of keys, rounding is left


class FusedBlocks:
    """The blocks of a model with kernels, in place, all of them or none.

    Args:
        model: on its device.
        leaf: gives, for a weight, the tensor that its layer computes with: its copy in 16 bits, or itself.
        dtype: of forward passes, float32 or that of autocast.

    Attributes:
        why_not: why they stay as they are, for a warning; empty if they have kernels.
    """

    def __init__(self, model: PackedClassifier, leaf: Leaf, dtype: torch.dtype) -> None:
        self._changed: Changed = []
        self.why_not = obstacle(model.device) or _unknown_block(model)
        for block in [] if self.why_not else encoder_blocks(model):
            self.why_not = self._fuse(block, leaf, dtype)
            if self.why_not:
                self.undo()
                break

    def undo(self) -> None:
        """Have all blocks as they were."""
        for module, forward in reversed(self._changed):
            module.forward = forward
        self._changed.clear()

    def _fuse(self, block: nn.Module, leaf: Leaf, dtype: torch.dtype) -> str:
        """Change a block. Returns what is different with kernels; nothing if they give the same."""
        try:
            expected = _tried(block, leaf, dtype)
            fuse = _fuse_distilbert if isinstance(block, TransformerBlock) else _fuse_bert
            self._changed += fuse(block, leaf)
            is_right = _are_close(_tried(block, leaf, dtype), expected, dtype) and _drops_rightly(block, dtype)
        except Exception as error:  # whatever a compiler says on a machine that it was not made for
            return f"does not work here ({shortened(str(error))})"
        return "" if is_right else "is wrong here"


def _unknown_block(model: PackedClassifier) -> str:
    for block in encoder_blocks(model):
        if not isinstance(block, TransformerBlock) and not all(has_part(block, part) for part in BERT_PARTS):
            return f"does not know the blocks of {display_name(model.config)} models"
    return ""


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
    weights, norm = list(block.parameters()), _norm_of(block)
    device = weights[0].device
    pack = Pack.of(np.array([3, 9])).to(device)
    generator = torch.Generator().manual_seed(0)  # the random state of training stays what it is
    drawn = torch.randn((2, 1, pack.num_tokens, *norm.normalized_shape), generator=generator).to(device)
    hidden, was_training = drawn[0].requires_grad_(), block.training
    block.eval()
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
    with torch.enable_grad(), autocast:
        output = block(hidden, attention_mask=None, pack=pack)
    block.train(was_training)
    output = output[0] if isinstance(output, tuple) else output
    leaves = [hidden, *(leaf(weight) for weight in weights)]
    loss = (output.float() * drawn[1][:, : output.shape[1]]).sum()
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    tensors = (output, *(gradient for gradient in gradients if gradient is not None))
    return [tensor.detach().float() for tensor in tensors]


def _norm_of(block: nn.Module) -> nn.LayerNorm:
    return next(module for module in block.modules() if isinstance(module, nn.LayerNorm))


def _are_close(found: list[torch.Tensor], expected: list[torch.Tensor], dtype: torch.dtype) -> bool:
    """Whether an output and gradients are the expected ones, each by its own largest number."""
    if len(found) != len(expected):
        return False
    tolerance = TOLERANCE if dtype == torch.float32 else TOLERANCE_IN_16_BITS
    floor = FLOOR * max(float(gradient.abs().max()) for gradient in expected[1:])
    return all(
        float((one - other).abs().max()) <= tolerance * max(float(other.abs().max()), floor)
        for one, other in zip(found, expected, strict=True)
    )


def _drops_rightly(block: nn.Module, dtype: torch.dtype) -> bool:
    """Whether dropout within a sum that is normed gives what torch gives with the same elements dropped."""
    from sst2.kernels.block import add_norm

    norm, probability = _norm_of(block), 0.25
    device, width = norm.weight.device, norm.normalized_shape[0]
    plain = nn.LayerNorm(width, norm.eps, device=device)
    hidden = torch.linspace(0.5, 1.5, 5 * width, device=device).view(5, width).to(dtype).requires_grad_()
    bias, residual = torch.full_like(hidden[0], 10.0).detach(), torch.zeros_like(hidden).detach()
    factors = torch.cos(torch.arange(5 * width, device=device)).view(5, width)
    with torch.enable_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        output = add_norm(hidden, bias, residual, plain, probability).float()
        is_kept = output.detach() > output.detach().mean(1, keepdim=True)  # 0 is far below 13
        expected = plain(torch.where(is_kept, (hidden.float() + bias.float()) / (1 - probability), 0.0))
        outputs = [(one, torch.autograd.grad((one * factors).sum(), hidden)[0].float()) for one in (output, expected)]
    share = float(is_kept.float().mean())
    found, other = ([tensor.detach() for tensor in pair] for pair in outputs)
    return abs(share - (1 - probability)) < 0.2 and _are_close(found, other, dtype)
