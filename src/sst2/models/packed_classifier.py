"""The stock DistilBERT on packed batches: sentences laid end to end, without padding.

Linear layers, norms and activations look at one token at a time, so they take a packed batch as it is. Attention must
not look from one sentence into another. Of the last layer only the first token of each sentence reaches the head, so
queries, output projection, feed-forward network and norms are computed for those alone. Both are exact.
"""

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

from sst2.data.packing import Pack
from sst2.models.attention import attend

CPU_TOKENS = 64  # a packed batch has a multiple of it on a CPU
ATTENTION = "sst2_packed"  # its name among transformers' attention functions


class PackedClassifier(DistilBertForSequenceClassification):
    """The stock classifier, weight for weight, that takes packed batches as well as padded ones.

    Attributes:
        drawn: names of the weights that come from torch's random state, not from a checkpoint.
    """

    drawn: frozenset[str] = frozenset()

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
        """Logits, (sentences, classes).

        A packed batch has `input_ids` and `position_ids`, from 0 in each sentence, of (tokens,), and a `pack`; a padded
        one `input_ids` and `attention_mask` of (sentences, longest).
        """
        if pack is None or position_ids is None:
            padded: SequenceClassifierOutput = super().forward(input_ids=input_ids, attention_mask=attention_mask)
            return padded
        if input_ids.device.type == "cpu":  # whose library generates code for every number of tokens that it meets
            spare = (0, -len(input_ids) % CPU_TOKENS)
            input_ids, position_ids = F.pad(input_ids, spare), F.pad(position_ids, spare)
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
        attention, first = self.attention, hidden_states[:, pack.cls_indices]
        projected = attention.q_lin(first), attention.k_lin(hidden_states), attention.v_lin(hidden_states)
        query, key, value = (tensor[0].unflatten(-1, (attention.n_heads, -1)) for tensor in projected)
        probability = attention.dropout.p if self.training else 0.0
        mixed = attend(query, key, value, pack, probability, attention.scaling)
        attended = attention.out_lin(mixed.flatten(1))[None]
        attended = self.sa_layer_norm(attended + first)
        output: torch.Tensor = self.output_layer_norm(self.ffn(attended) + attended)
        return output


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

    Query, key and value are (1, heads, tokens, width).

    Returns:
        (1, tokens, heads, width), as transformers expects it, and no weights.
    """
    if pack is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return attend(query, key, value, pack, dropout, scaling)[None], None


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
