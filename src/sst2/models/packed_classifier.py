"""A stock classifier of any architecture on packed batches: sentences laid end to end, without padding.

Linear layers, norms and activations look at one token at a time, so they take a packed batch as it is. Attention must
not look from one sentence into another: transformers' attention interface has it done by `attend`. Between encoder and
head, the packed hidden states are pooled to one for each sentence. Of the last layer only the first token of each
sentence reaches the head, so where its block is of a known kind, queries, output projection, feed-forward network and
norms are computed for those alone. All of it is exact.

That a model gives the padded logits so is found out by trying with a tiny one of its config, when it is loaded. One
that does not is padded.
"""

import copy
import logging
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
    classifier_class,
    display_name,
    encoder_blocks,
    first_position,
    output_layer,
    tiny,
)
from sst2.models.attention import attend, mean_of_sentences
from sst2.models.last_block import compute_first_tokens_only

logger = logging.getLogger(__name__)

CPU_TOKENS = 64  # a packed batch has a multiple of it on a CPU
ATTENTION = "sst2_packed"  # its name among transformers' attention functions
FIRST_TOKEN = ("cls", "bos")  # names of the pooling that takes a sentence's first token
TRIED_LENGTHS = (9, 3, 1)  # tokens of the sentences that a model is tried with
TOLERANCE = 1e-4  # of the padded logits' size: what float32 leaves is a hundredth of it


class PackedClassifier(PreTrainedModel):
    """A stock classifier, weight for weight, that takes packed batches as well as padded ones.

    `pack_classifier` makes one of a stock model, whose class then comes after this one.

    Attributes:
        drawn: names of the weights that come from torch's random state, not from a checkpoint.
        can_pack: whether it takes packed batches.
    """

    drawn: frozenset[str] = frozenset()
    can_pack: bool = False
    _first_position: int = 0
    _first_tokens_only: bool = False
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
            pooled = hidden[0] if self._first_tokens_only else hidden[0, pack.cls_indices]
        output.last_hidden_state = pooled[:, None]
        return output

    def _pool_logits(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """Hook on the output layer, where a model takes the mean of its tokens' logits."""
        return output if self._pack is None else mean_of_sentences(output[0], self._pack)[:, None]


def pack_classifier(model: PreTrainedModel) -> PackedClassifier:
    """Have a stock classifier take packed batches, if its architecture then gives the logits of padded ones.

    It is changed in place. That is found out by trying with a tiny model of the same config; torch's random state stays
    what it is.
    """
    can_pack, first_tokens_only = _what_works(model.config)
    if can_pack:
        return _packed(model, first_tokens_only)
    return _of_class(model)


def _of_class(model: PreTrainedModel) -> PackedClassifier:
    """The model with `PackedClassifier` before its class."""
    model.__class__ = type(f"Packed{type(model).__name__}", (PackedClassifier, type(model)), {})
    assert isinstance(model, PackedClassifier)
    model._no_split_modules = [type(block).__name__ for block in encoder_blocks(model)][:1]  # for FSDP2
    return model


def _packed(model: PreTrainedModel, first_tokens_only: bool) -> PackedClassifier:
    """The model with everything that packed batches need, whether it is right or not."""
    packed = _of_class(model)
    packed.can_pack = True
    packed.config._attn_implementation = ATTENTION
    packed._first_position = first_position(packed)
    packed._pooling = _pooling_of(packed.config)
    packed._first_tokens_only = first_tokens_only and compute_first_tokens_only(encoder_blocks(packed))
    if packed._pooling == "late":
        output_layer(packed).register_forward_hook(packed._pool_logits)
    else:
        for place in (packed.base_model, *packed.base_model.children()):
            place.register_forward_hook(packed._pool_hidden)
    return packed


def _pooling_of(config: PreTrainedConfig) -> str:
    return getattr(config, "classifier_pooling", None) or FIRST_TOKEN[0]


def _what_works(config: PreTrainedConfig) -> tuple[bool, bool]:
    """Whether models of this config may be packed, and have their last layer computed for first tokens only."""
    small = tiny(config)
    for first_tokens_only in (_pooling_of(config) in FIRST_TOKEN, False):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _packed(classifier_class(small)(copy.deepcopy(small)), first_tokens_only)
        if gives_padded_logits(model):
            if not model._first_tokens_only:
                logger.debug("%s: its last layer is computed for every token", display_name(config))
            return True, model._first_tokens_only
    return False, False


@torch.no_grad()
def gives_padded_logits(model: PackedClassifier) -> bool:
    """Whether packed sentences, one of them longer than a sliding window, have the logits that they have padded."""
    config = model.config
    lengths = [*TRIED_LENGTHS]
    if window := getattr(config, "sliding_window", None):
        lengths.append(min(window + TRIED_LENGTHS[0], config.max_position_embeddings))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (len(lengths), max(lengths)), generator=generator)
    pad = config.pad_token_id or 0
    ids[ids == pad] = 0 if pad else 1
    is_token = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    positions = torch.arange(max(lengths)).expand_as(ids)
    model.eval()
    try:
        padded = model(ids.masked_fill(~is_token, pad), attention_mask=is_token.long()).logits
        pack = Pack.of(is_token.sum(1).numpy())
        packed = model(ids[is_token], position_ids=positions[is_token], pack=pack).logits
    except Exception as error:  # whatever a model says that is called as none of its kind is
        logger.debug("%s cannot be packed: %s", type(model).__name__, error)
        return False
    size = padded.abs().max().item()
    return packed.shape == padded.shape and torch.allclose(
        packed, padded, rtol=0, atol=TOLERANCE * size if size < float("inf") else 0.0, equal_nan=True
    )


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
    return attend(query, key, value, pack, dropout, scaling, window)[None], None


def packed_mask(attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """Transformers' own mask of a padded batch; none of a packed one, which alone has no `attention_mask`."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **kwargs)


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, packed_mask)
