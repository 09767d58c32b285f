"""A tiny model of a checkpoint's config is tried before its own weights are used: what may be done with its kind.

Nothing is known of an architecture by its name. Whether its sentences are kept apart on packed batches, whether its
logits depend on padding, whether tokens see those after them, and which weights its classifier leaves idle, a model
with random weights tells as well as a trained one.
"""

import copy
import re
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from sst2.data.packing import Pack
from sst2.models.architecture import (
    classifier_class,
    content_of,
    dropouts,
    plain_config,
    require_classifier,
    skeleton,
    tiny,
)
from sst2.models.packed_classifier import PackedClassifier, as_packed, as_padded_only, pools_first_token
from sst2.utils.errors import UserError, shortened

LENGTHS = (9, 3, 1)  # tokens of the sentences that a model is tried with
TOLERANCE = 1e-4  # of the size of padded logits and gradients: what float32 leaves is a hundredth of it
NO_GRADIENT = 1e-6  # of the largest gradient: what is smaller is rounding, as of the bias of keys
MOST_WEIGHTS = 1_000_000_000  # of a model whose config does not come small
NOISE = 0.05  # standard deviation of what is added to each weight, so that none is 0 or 1


@dataclass(frozen=True)
class Findings:
    """What a trial has shown.

    Attributes:
        is_causal: whether the first token sees none after it.
        sees_padding: whether a sentence's logits depend on the padding beside it.
        why_padded: why packed sentences cannot have the logits and gradients of padded ones; empty where they have.
        first_tokens_only: whether they have them also with the last layer computed for first tokens alone.
        idle: patterns of the names of weights that no logit depends on.
    """

    is_causal: bool
    sees_padding: bool
    why_padded: str
    first_tokens_only: bool
    idle: frozenset[str]


_FOUND: dict[tuple[type[PreTrainedConfig], str], Findings] = {}


def require_encoder(who: str, config: PreTrainedConfig) -> None:
    """Raises UserError: this is no encoder whose sequence classifier can be trained in batches of several sentences."""
    require_classifier(who, config)
    kind = config.model_type
    try:
        found = findings_of(config)
    except Exception as error:  # whatever a model says that is made and called as most of its kind are
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{who} is a {kind} model, which does not work as a classifier of texts ({reason})") from error
    if found.is_causal:
        raise UserError(f"{who} is a {kind} model whose tokens see none after them: give an encoder, such as BERT")
    if found.sees_padding:
        raise UserError(
            f"{who} is a {kind} model, whose logits change with the padding beside a sentence: a sentence would be "
            "classified by what it is batched with; give another encoder, such as BERT"
        )


def pack_classifier(model: PreTrainedModel) -> PackedClassifier:
    """Have a stock classifier take packed batches, if its architecture then gives the logits of padded ones.

    It is changed in place; torch's random state stays what it is.
    """
    found = findings_of(model.config)
    packed = as_padded_only(model) if found.why_padded else as_packed(model, found.first_tokens_only)
    packed.why_padded = found.why_padded
    packed.idle = frozenset(name for name, _ in model.named_parameters() if _pattern(name) in found.idle)
    return packed


def findings_of(config: PreTrainedConfig) -> Findings:
    """Try a tiny model of a config, once for each; torch's random state stays what it is.

    Raises:
        Exception: whatever the model raises on a padded batch.
    """
    tried = plain_config(config)
    tried.update(dict.fromkeys(dropouts(tried), 0.0))
    tried.id2label = {0: "a", 1: "b", 2: "c"}  # classes change nothing of it
    key = type(config), content_of(tried)
    if key not in _FOUND:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _FOUND[key] = _try_out(tiny(tried))
    return _FOUND[key]


def _try_out(config: PreTrainedConfig) -> Findings:
    if (size := skeleton(config).num_parameters()) > MOST_WEIGHTS:
        raise ValueError(f"no model of its config with less than {size:,} weights can be made to try it")
    model = _with_noise(classifier_class(config)(copy.deepcopy(config))).eval()
    ids, is_token = _sentences(config)
    gradients = _gradients(model, logits := model(input_ids=ids, attention_mask=is_token.long()).logits)
    sees_padding = not _are_close(_logits_alone(model, ids, is_token), logits.detach())
    for first_only in (pools_first_token(config), False):
        packed = as_packed(copy.deepcopy(model), first_only)
        if not (why_padded := _difference(packed, ids, is_token, logits.detach(), gradients)):
            break
    return Findings(
        is_causal=_is_causal(model, ids[:1, : LENGTHS[0]]),
        sees_padding=sees_padding,
        why_padded=why_padded,
        first_tokens_only=not why_padded and packed.first_tokens_only,
        idle=frozenset(_pattern(name) for name, _ in model.named_parameters()) - {_pattern(name) for name in gradients},
    )


def _sentences(config: PreTrainedConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and whether they are of a sentence, (sentences, longest): one is longer than a sliding window.

    The first has the special tokens that the config names, for which some models have rules of their own.
    """
    lengths = [*LENGTHS]
    if window := getattr(config, "sliding_window", None):
        lengths.append(min(window + LENGTHS[0], config.max_position_embeddings))
    ids = torch.randint(config.vocab_size, (len(lengths), max(lengths)))
    pad = config.pad_token_id or 0
    ids[ids == pad] = 0 if pad else 1
    named = {value for name, value in config.to_dict().items() if name.endswith("_token_id") and value != pad}
    special = sorted(value for value in named if isinstance(value, int) and 0 <= value < config.vocab_size)
    for place, value in enumerate(special[: LENGTHS[0] - 2], start=1):
        ids[0, place] = value
    is_token = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids.masked_fill(~is_token, pad), is_token


@torch.no_grad()
def _with_noise(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            parameter.add_(torch.randn_like(parameter), alpha=NOISE)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx] = 0  # as it stays in training
    return model


@torch.no_grad()
def _logits_alone(model: PreTrainedModel, ids: torch.Tensor, is_token: torch.Tensor) -> torch.Tensor:
    """Of each sentence in a batch of its own, without padding."""
    sentences = [row[own][None] for row, own in zip(ids, is_token, strict=True)]
    return torch.cat([model(input_ids=one, attention_mask=torch.ones_like(one)).logits for one in sentences])


@torch.no_grad()
def _is_causal(model: PreTrainedModel, sentence: torch.Tensor) -> bool:
    """Whether the first hidden state of a sentence, (1, tokens), stays the same whatever its second token is."""
    other = sentence.clone()
    other[0, 1] = sentence[0, -1] if sentence[0, -1] != sentence[0, 1] else sentence[0, 2]
    mask = torch.ones_like(sentence)
    first, second = (model.base_model(input_ids=ids, attention_mask=mask)[0][0, 0] for ids in (sentence, other))
    return torch.allclose(first, second, rtol=0, atol=TOLERANCE * float(first.abs().max()))


def _difference(
    model: PackedClassifier,
    ids: torch.Tensor,
    is_token: torch.Tensor,
    logits: torch.Tensor,
    gradients: dict[str, torch.Tensor],
) -> str:
    """What a packed batch of the sentences has that differs from these logits and gradients; nothing if none does."""
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    try:
        pack = Pack.of(is_token.sum(1).numpy())
        found = model(ids[is_token], position_ids=positions[is_token], pack=pack).logits
        if found.shape != logits.shape:
            return f"a packed batch has logits of shape {tuple(found.shape)} instead of {tuple(logits.shape)}"
        if not _are_close(found, logits):
            return f"packed logits differ from padded ones by {float((found.detach() - logits).abs().max()):.2g}"
        found_gradients = _gradients(model, found)
    except Exception as error:  # whatever a model says that is called as none of its kind is
        return shortened(" ".join(f"{type(error).__name__}: {error}".split()))
    floor = NO_GRADIENT * max(float(gradient.abs().max()) for gradient in gradients.values())
    for name in sorted(found_gradients.keys() | gradients.keys()):
        pair = found_gradients.get(name), gradients.get(name)
        if pair[0] is None or pair[1] is None or not _are_close(pair[0], pair[1], floor):
            return f"the packed gradient of {name} differs from the padded one"
    return ""


def _gradients(model: nn.Module, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the sum of squared logits, by the name of each weight that it depends on."""
    model.zero_grad()
    logits.square().sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def _are_close(found: torch.Tensor, expected: torch.Tensor, floor: float = 0.0) -> bool:
    largest = float(expected.abs().max())
    return torch.allclose(found, expected, rtol=0, atol=TOLERANCE * largest + floor)


def _pattern(name: str) -> str:
    """The name of a weight without the number of its layer, of which the tiny model has fewer."""
    return re.sub(r"\.\d+\.", ".*.", name)
