"""The stock DistilBERT on packed batches: sentences laid end to end, without padding.

Linear layers, norms and activations look at one token at a time, so they take a packed batch as it is. Attention must
not look from one sentence into another. Of the last layer only the first token of each sentence reaches the head, so
queries, output projection, feed-forward network and norms are computed for those alone. Both are exact.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.distilbert.modeling_distilbert import TransformerBlock

ATTENTION = "sst2_packed"  # its name among transformers' attention functions


@dataclass(frozen=True)
class Pack:
    """Where the sentences of a packed batch lie.

    Attributes:
        starts: (sentences,) int64, the first token of each.
        grid: (sentences, longest) int64, the token at each place of the padded batch; 0 where there is none.
        is_token: (sentences, longest) bool, where there is one.
        slots: (tokens,) int64, the place of each token in the flattened grid.
    """

    starts: torch.Tensor
    grid: torch.Tensor
    is_token: torch.Tensor
    slots: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "Pack":
        return Pack(*(getattr(self, field.name).to(device, non_blocking=non_blocking) for field in fields(self)))


class PackedClassifier(DistilBertForSequenceClassification):
    """The stock classifier, weight for weight, that takes packed batches as well as padded ones."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        config._attn_implementation = ATTENTION
        # In place, so that no weight is drawn twice; strategies that gather a block's weights do so around its call.
        self.distilbert.transformer.layer[-1].__class__ = _LastBlock

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pack: Pack | None = None,
    ) -> SequenceClassifierOutput:
        """Logits, (sentences, 2).

        Args:
            input_ids: (tokens,) of a packed batch, or (sentences, longest) of a padded one.
            attention_mask: (sentences, longest) of a padded batch.
            position_ids: (tokens,) of a packed batch, from 0 in each sentence.
            pack: of a packed batch.
        """
        if pack is None or position_ids is None:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask)
        hidden = self.distilbert.embeddings(input_ids[None], position_ids=position_ids[None])
        for block in self.distilbert.transformer.layer:
            hidden = block(hidden, None, pack=pack)
        pooled = F.relu(self.pre_classifier(hidden[0]))
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(pooled)))


class _LastBlock(TransformerBlock):
    """A block that computes the first token of each sentence alone, where it knows where they are."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pack: Pack | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if pack is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        attention, first = self.attention, hidden_states[:, pack.starts]
        keys, values = (
            _padded(linear(hidden_states)[0].unflatten(-1, (attention.n_heads, -1)), pack)
            for linear in (attention.k_lin, attention.v_lin)
        )
        queries = attention.q_lin(first)[0].unflatten(-1, (attention.n_heads, 1, -1))
        dropout = attention.dropout.p if self.training else 0.0
        mixed = _attend(queries, keys, values, pack, dropout, attention.scaling)
        attended = attention.out_lin(mixed.flatten(1))[None]
        attended = self.sa_layer_norm(attended + first)
        return self.output_layer_norm(self.ffn(attended) + attended)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    pack: Pack | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each sentence of a packed batch; transformers' own where there is no `pack`.

    Args:
        query, key, value: (1, heads, tokens, width).

    Returns:
        (1, tokens, heads, width), as transformers expects it, and no weights.
    """
    if pack is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    queries, keys, values = (_padded(tensor[0].transpose(0, 1), pack) for tensor in (query, key, value))
    mixed = _attend(queries, keys, values, pack, dropout, scaling)  # (sentences, heads, longest, width)
    return mixed.transpose(1, 2).flatten(0, 1)[pack.slots][None], None


def _padded(tensor: torch.Tensor, pack: Pack) -> torch.Tensor:
    """(tokens, heads, width) to (sentences, heads, longest, width)."""
    return tensor[pack.grid].transpose(1, 2)


def _attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, pack: Pack, dropout: float, scaling: float | None
) -> torch.Tensor:
    mask = pack.is_token[:, None, None]
    return F.scaled_dot_product_attention(queries, keys, values, mask, dropout, scale=scaling)


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
