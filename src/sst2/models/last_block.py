"""The last block of an encoder for the first token of each sentence alone, which is all that the head reads.

It needs to know what a block computes: DistilBERT's, and the one that BERT has handed down (RoBERTa, XLM-RoBERTa,
CamemBERT, ELECTRA, ...). Blocks stay blocks, since ZeRO-3 and FSDP2 gather their weights around their call.
"""

from typing import Any

import torch
from torch import nn
from transformers.models.distilbert.modeling_distilbert import TransformerBlock

from sst2.data.packing import Pack
from sst2.models.attention import attend

BERT_PARTS = (
    "attention.self.query attention.self.key attention.self.value attention.output.LayerNorm intermediate.dense "
    "output.LayerNorm"
).split()


class LastBlock(nn.Module):
    """Comes before a stock block's class, and takes over where it is told where the sentences lie."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, pack: Pack | None = None, **kwargs: Any) -> Any:
        """The stock block's output; of a packed batch, that of the first tokens alone, (1, sentences, width)."""
        if pack is None:
            return super().forward(hidden_states, *args, **kwargs)
        return self.of_first_tokens(hidden_states, hidden_states[:, pack.cls_indices], pack)

    def of_first_tokens(self, hidden: torch.Tensor, first: torch.Tensor, pack: Pack) -> torch.Tensor:
        """(1, sentences, width), of all hidden states and of the first tokens'."""
        raise NotImplementedError

    def attended(
        self, attention: Any, layers: tuple[Any, Any, Any], hidden: torch.Tensor, first: torch.Tensor, pack: Pack
    ) -> torch.Tensor:
        """(1, sentences, width), what first tokens take from their sentences; `layers` give query, key and value."""
        to_query, to_key, to_value = layers
        projected = to_query(first), to_key(hidden), to_value(hidden)
        query, key, value = (tensor[0].unflatten(-1, (-1, attention.attention_head_size)) for tensor in projected)
        probability = attention.dropout.p if self.training else 0.0
        implementation = attention.config._attn_implementation
        mixed = attend(query, key, value, pack, probability, attention.scaling, implementation=implementation)
        return mixed.flatten(1)[None]


class LastDistilBertBlock(LastBlock):
    """DistilBERT's."""

    def attention_output(self, hidden: torch.Tensor, first: torch.Tensor, pack: Pack) -> torch.Tensor:
        """(1, sentences, width), before it is added to the first tokens' own states; arguments as `of_first_tokens`."""
        attention: Any = self.attention
        layers = attention.q_lin, attention.k_lin, attention.v_lin
        output: torch.Tensor = attention.out_lin(self.attended(attention, layers, hidden, first, pack))
        return output

    def of_first_tokens(self, hidden: torch.Tensor, first: torch.Tensor, pack: Pack) -> torch.Tensor:
        """As `LastBlock` says."""
        block: Any = self
        attended = block.sa_layer_norm(self.attention_output(hidden, first, pack) + first)
        output: torch.Tensor = block.output_layer_norm(block.ffn(attended) + attended)
        return output


class _LastBertBlock(LastBlock):
    def of_first_tokens(self, hidden: torch.Tensor, first: torch.Tensor, pack: Pack) -> torch.Tensor:
        block: Any = self
        attention = block.attention.self
        layers = attention.query, attention.key, attention.value
        attended = block.attention.output(self.attended(attention, layers, hidden, first, pack), first)
        output: torch.Tensor = block.output(block.intermediate(attended), attended)
        return output


def compute_first_tokens_only(blocks: nn.ModuleList) -> bool:
    """Have the last block do so, in place; whether it is of a known kind.

    In place, so that no weight is drawn twice.
    """
    if not blocks:
        return False
    block, kind = blocks[-1], type(blocks[-1])
    if isinstance(block, TransformerBlock):
        block.__class__ = type(f"Last{kind.__name__}", (LastDistilBertBlock, kind), {})
    elif all(has_part(block, part) for part in BERT_PARTS):
        block.__class__ = type(f"Last{kind.__name__}", (_LastBertBlock, kind), {})
    else:
        return False
    return True


def has_part(block: nn.Module, part: str) -> bool:
    """Whether a block has a module of this name within it."""
    try:
        block.get_submodule(part)
    except AttributeError:
        return False
    return True
