"""What is asked of an architecture: its stock classifier, blocks, output layer, positions, and what a config.json says.

Nothing here knows an architecture by its name. All of it is read from the config's class, or from the stock model
without memory for its weights (`skeleton`).
"""

import copy
import inspect
import re
import sys
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedConfig, PreTrainedModel

from sst2.utils.errors import UserError

SIZES = (
    "vocab_size max_position_embeddings num_hidden_layers num_attention_heads num_key_value_heads hidden_size "
    "embedding_size intermediate_size hidden_dim head_dim"
).split()
TINY = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "hidden_size": 16,
    "pooler_hidden_size": 16,
    "head_dim": 8,
    "embedding_size": 16,
    "intermediate_size": 16,
    "hidden_dim": 16,
    "initializer_range": 0.1,
}
UNLIMITED = 1 << 30  # positions of a model that has no limit


def display_name(config: PreTrainedConfig) -> str:
    """The architecture, for a person: DistilBERT, ModernBERT, Roberta."""
    return type(config).__name__.removesuffix("Config").replace("Bert", "BERT")


def classifier_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that `AutoModelForSequenceClassification` makes of this config."""
    found: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    kind: type[PreTrainedModel] = found
    return kind


def require_encoder(who: str, config: PreTrainedConfig) -> None:
    """Raises UserError: this is no encoder with a sequence classifier, or has a size that no model has."""
    kind = config.model_type
    if config.is_encoder_decoder:
        raise UserError(f"{who} is a {kind} model, an encoder with a decoder: give an encoder, such as BERT")
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"{who} is a {kind} model, of which transformers has no sequence classifier: give an encoder")
    for name in (config.attribute_map.get(size, size) for size in SIZES):
        value = getattr(config, name, None)
        if isinstance(value, int) and value < 1:
            raise UserError(f"{who}: its config.json has {name} {value}")
    is_causal = getattr(plain_config(config), "is_decoder", False) or any(
        getattr(module, "is_causal", False) is True for module in skeleton(tiny(config)).modules()
    )
    if is_causal:
        raise UserError(f"{who} is a {kind} model whose tokens see none after them: give an encoder, such as BERT")


def plain_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Its architecture and names of classes. Whatever else stood in a config.json changes nothing that a run does.

    The architecture is what the config's class adds to `PreTrainedConfig`, and what else the model's code looks up in a
    config, as DeBERTa-v2's does `share_att_key`. `problem_type`, `output_attentions`,
    `return_dict`, `attn_implementation` and the like would change the loss, the outputs, what `pipeline` makes of the
    export, or where transformers takes code from.
    """
    kind = type(config)
    common = _arguments(PreTrainedConfig)
    names = {"pad_token_id"} | (_arguments(kind) - common) | (_looked_up(config) - common)
    own = {name: getattr(config, name) for name in sorted(names) if hasattr(config, name)}
    return kind(**own, id2label=config.id2label, label2id=config.label2id)


def dropouts(config: PreTrainedConfig) -> list[str]:
    """Names of the probabilities of dropout that a classifier has; `qa_dropout` is another head's."""
    return [name for name in sorted(_arguments(type(config))) if "dropout" in name and not name.startswith("qa_")]


def tiny(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same architecture with two narrow layers, or one of each type; as it is, if its config comes not so small."""
    small = TINY | {config.attribute_map[name]: size for name, size in TINY.items() if name in config.attribute_map}
    values = plain_config(config).to_dict()
    values |= {name: size for name, size in small.items() if values.get(name) is not None}
    if types := values.get("layer_types"):
        values["layer_types"] = [*dict.fromkeys(types)] if len({*types}) > 1 else types[:2]
        values["num_hidden_layers"] = len(values["layer_types"])
    try:
        return type(config)(**values)
    except Exception:  # whatever a config says of sizes that do not fit each other
        return plain_config(config)


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The stock classifier without memory for its weights; torch's random state stays what it is."""
    if (config.pad_token_id or 0) >= config.vocab_size:  # as a run replaces it by the tokenizer's
        config = copy.deepcopy(config)
        config.pad_token_id = None
    with torch.device("meta"):
        return classifier_class(config)(config)


def max_positions(config: PreTrainedConfig) -> int:
    """The tokens that a sentence may have."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    return UNLIMITED if positions is None else positions - first_position(skeleton(tiny(config)))


def first_position(model: PreTrainedModel) -> int:
    """The number of the first token's position: RoBERTa and its descendants count from their padding's id + 1."""
    for name, module in model.base_model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def encoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The blocks of the encoder; a model that shares weights between layers has fewer of them than layers."""
    lists = (module for module in model.base_model.modules() if isinstance(module, nn.ModuleList))
    return next(lists, nn.ModuleList())


def is_of_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight is the head's: outside the base model, or its pooler, which other tasks do without."""
    prefix = f"{model.base_model_prefix}."
    return not name.startswith(prefix) or name.startswith(f"{prefix}pooler.")


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """The layer whose outputs are the logits, one a class."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return next(layer for layer in reversed(layers) if layer.out_features == model.config.num_labels)


def _looked_up(config: PreTrainedConfig) -> set[str]:
    """Attributes of a config that the code of its model names."""
    return {*vars(config)} & _named_in(classifier_class(config).__module__)


@lru_cache
def _named_in(module: str) -> frozenset[str]:
    return frozenset(re.findall(r'\bconfig(?:\.|, ")(\w+)', inspect.getsource(sys.modules[module])))


def _arguments(kind: type[Any]) -> set[str]:
    """What a config's class takes."""
    if is_dataclass(kind):
        return {field.name for field in fields(kind)}
    return {*inspect.signature(kind.__init__).parameters} - {"self", "kwargs"}
