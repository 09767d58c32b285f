"""A stock classifier of any architecture on packed batches: sentences laid end to end, without padding.

Linear layers, norms and activations look at one token at a time, so they take a packed batch as it is. Attention must
not look from one sentence into another: transformers' attention interface has it done by `attend`. Between encoder and
head, the packed hidden states are pooled to one for each sentence. Of the last layer only the first token of each
sentence reaches the head, so where its block is of a known kind, queries, output projection, feed-forward network and
norms are computed for those alone. All of it is exact.

Whether a model gives the padded logits so is found out by `sst2.models.trial` when it is loaded. One that does not is
padded.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import SequenceClassifierOutput

from sst2.data.packing import Pack
from sst2.models.architecture import (
    encoder_blocks,
    first_position,
    output_layer,
)
from sst2.models.attention import PACKED_ATTENTION, TRITON_ATTENTION, attend, mean_of_sentences
from sst2.models.last_block import compute_first_tokens_only

CPU_TOKENS = 64  # a packed batch has a multiple of it on a CPU
FIRST_TOKEN = ("cls", "bos")  # names of the pooling that takes a sentence's first token


class PackedClassifier(PreTrainedModel):
    """A stock classifier, weight for weight, that takes packed batches as well as padded ones.

    `sst2.models.trial.pack_classifier` makes one of a stock model, whose class then comes after this one.

    Attributes:
        drawn: names of the weights that come from torch's random state, not from a checkpoint.
        idle: names of the weights that no logit depends on, which get no gradient.
        can_pack: whether it takes packed batches.
        why_padded: why not, for a person.
        first_tokens_only: whether its last layer is computed for the first token of each sentence alone.
    """

    drawn: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    can_pack: bool = False
    why_padded: str = ""
    first_tokens_only: bool = False
    _first_position: int = 0
    _pooling: str = FIRST_TOKEN[0]
    _pack: Pack | None = None  # of the batch on its way, until it is pooled

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
        output: SequenceClassifierOutput
        if pack is None or position_ids is None:
            attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            output = super().forward(input_ids=input_ids, attention_mask=attention_mask)
            return output
        if input_ids.device.type == "cpu":  # whose library generates code for every number of tokens that it meets
            spare = (0, -len(input_ids) % CPU_TOKENS)
            input_ids, position_ids = F.pad(input_ids, spare), F.pad(position_ids, spare)
        positions = self._positions(input_ids, position_ids)
        self._pack = pack
        try:
            output = super().forward(input_ids=input_ids[None], position_ids=positions[None], pack=pack)
        finally:
            self._pack = None
        return output

    def _positions(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """(tokens,) as the stock model numbers them: RoBERTa's kind leaves out padding, which a text may name."""
        if not self._first_position:
            return position_ids
        is_word = (input_ids != self._first_position - 1).long()
        count = is_word.cumsum(0)
        start = torch.arange(len(input_ids), device=input_ids.device) - position_ids
        return (count - count[start] + is_word[start]) * is_word + self._first_position - 1

    def _pool_hidden(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        """Hook on the base model and its children: the first hidden states of all tokens become one a sentence.

        They become (sentences, 1, width), of which the stock pooler or head takes the first place, or the mean.
        """
        pack, hidden = self._pack, getattr(output, "last_hidden_state", None)
        if pack is None or hidden is None:
            return output
        self._pack = None
        if self._pooling == "mean":
            pooled = mean_of_sentences(hidden[0], pack)
        else:
            pooled = hidden[0] if self.first_tokens_only else hidden[0, pack.cls_indices]
        output.last_hidden_state = pooled[:, None]
        return output

    def _pool_logits(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """Hook on the output layer, where a model takes the mean of its tokens' logits."""
        return output if self._pack is None else mean_of_sentences(output[0], self._pack)[:, None]


def as_packed(model: PreTrainedModel, first_tokens_only: bool) -> PackedClassifier:
    """Have a stock classifier take packed batches, in place, whether its logits are right then or not.

    `first_tokens_only` asks for the last layer of first tokens alone, which only a block of a known kind computes.
    """
    packed = as_padded_only(model)
    packed.can_pack = True
    packed.config._attn_implementation = PACKED_ATTENTION
    packed.first_tokens_only = first_tokens_only and compute_first_tokens_only(encoder_blocks(packed))
    packed._first_position = first_position(packed)
    packed._pooling = _pooling_of(packed.config)
    if packed._pooling == "late":
        output_layer(packed).register_forward_hook(packed._pool_logits)
    else:
        for place in (packed.base_model, *packed.base_model.children()):
            place.register_forward_hook(packed._pool_hidden)
    return packed


def as_padded_only(model: PreTrainedModel) -> PackedClassifier:
    """Have a stock classifier called as packed ones are, in place. It takes padded batches alone."""
    model.__class__ = type(f"Packed{type(model).__name__}", (PackedClassifier, type(model)), {})
    assert isinstance(model, PackedClassifier)
    model._no_split_modules = [type(block).__name__ for block in encoder_blocks(model)][:1]  # for FSDP2
    return model


def pools_first_token(config: PreTrainedConfig) -> bool:
    """Whether a classifier's head reads the first token of a sentence, as its config says."""
    return _pooling_of(config) in FIRST_TOKEN


def _pooling_of(config: PreTrainedConfig) -> str:
    return getattr(config, "classifier_pooling", None) or FIRST_TOKEN[0]


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    pack: Pack | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each sentence of a packed batch; transformers' own where there is no `pack`.

    Query is (1, heads, tokens, width); so are key and value, of which several heads may share one. `sliding_window` is
    one more than the tokens to each side that a token sees, as transformers hands it to FlashAttention.

    Returns:
        (1, tokens, heads, width), as transformers expects it, and no weights.
    """
    if pack is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    key, value = (repeat_kv(tensor, query.shape[1] // key.shape[1]) for tensor in (key, value))
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    window = None if sliding_window is None else sliding_window - 1
    config: Any = module.config
    return attend(query, key, value, pack, dropout, scaling, window, config._attn_implementation)[None], None


def packed_mask(attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """Transformers' own mask of a padded batch; none of a packed one, which alone has no `attention_mask`."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **kwargs)


for name in (PACKED_ATTENTION, TRITON_ATTENTION):
    AttentionInterface.register(name, packed_attention)
    AttentionMaskInterface.register(name, packed_mask)
