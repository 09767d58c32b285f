"""What is asked of an architecture: its stock classifier, blocks, output layer, positions, and what a config.json says.

Nothing here knows an architecture by its name. All of it is read from the config's class, or from the stock model
without memory for its weights (`skeleton`).
"""

import copy
import inspect
import json
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


def require_classifier(who: str, config: PreTrainedConfig) -> None:
    """Raises UserError: transformers has no sequence classifier of it alone, or it has a size that no model has."""
    kind = config.model_type
    if config.is_encoder_decoder:
        raise UserError(f"{who} is a {kind} model, an encoder with a decoder: give an encoder, such as BERT")
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"{who} is a {kind} model, of which transformers has no sequence classifier: give an encoder")
    values = config.to_dict()
    for name in (config.attribute_map.get(size, size) for size in SIZES):
        value = values.get(name)
        if isinstance(value, int) and value < 1:
            raise UserError(f"{who}: its config.json has {name} {value}")


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


def pads_with_a_token(config: PreTrainedConfig) -> bool:
    """Whether its padding is a token of its vocabulary."""
    return config.pad_token_id is not None and 0 <= config.pad_token_id < config.vocab_size


def dropouts(config: PreTrainedConfig) -> list[str]:
    """Names of the probabilities of dropout that a classifier has; `qa_dropout` is another head's."""
    names = (name for name in sorted(_arguments(type(config))) if "dropout" in name and not name.startswith("qa_"))
    return [name for name in names if not isinstance(getattr(config, name, None), bool)]  # which is a switch


def content_of(config: PreTrainedConfig) -> str:
    """All of a config, as JSON."""
    text: str = config.to_json_string(use_diff=False)
    return text


def tiny(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same architecture with two narrow layers, or one of each type; as it is, if it does not run so small.

    Torch's random state stays what it is.
    """
    kind: Any = type(config)
    plain = plain_config(config)
    if not pads_with_a_token(plain):  # as a run replaces it by the tokenizer's
        plain.pad_token_id = 0
    return copy.deepcopy(_tiny(kind, content_of(plain)))


@lru_cache(maxsize=8)
def _tiny(kind: Any, content: str) -> PreTrainedConfig:
    values = json.loads(content)
    whole: PreTrainedConfig = kind(**values)
    small = TINY | {whole.attribute_map[name]: size for name, size in TINY.items() if name in whole.attribute_map}
    depth = whole.num_hidden_layers
    layers = [*range(min(2, depth))]
    if types := values.get("layer_types"):
        layers = [types.index(one) for one in dict.fromkeys(types)] if len({*types}) > 1 else layers
        small["num_hidden_layers"] = len(layers)
    of_layers = {name: value for name, value in values.items() if isinstance(value, list) and len(value) == depth}
    values |= {name: size for name, size in small.items() if values.get(name) is not None}
    values |= {name: [value[layer] for layer in layers] for name, value in of_layers.items()}
    try:
        with torch.random.fork_rng(devices=[]):
            config: PreTrainedConfig = kind(**values)
            classifier_class(config)(copy.deepcopy(config)).eval()(torch.ones((1, 3), dtype=torch.int64))
    except Exception:  # whatever a config or model says of sizes that do not fit each other
        return whole
    return config


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The stock classifier without memory for its weights; torch's random state stays what it is."""
    with torch.device("meta"):
        return classifier_class(config)(config)


def max_positions(config: PreTrainedConfig) -> int:
    """The tokens that a sentence may have."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None or positions < 1:  # XLNet says -1
        return UNLIMITED
    return positions - first_position(skeleton(tiny(config)))


def first_position(model: PreTrainedModel) -> int:
    """The number of the first token's position: RoBERTa and its descendants count from their padding's id + 1."""
    for name, module in model.base_model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def encoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The blocks of the encoder; a model that shares weights between layers has fewer of them than layers."""
    lists = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=_num_weights, default=nn.ModuleList())  # embeddings may be a list as well


def _num_weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def is_of_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight is the head's: outside the base model, or its pooler, which other tasks do without."""
    prefix = f"{model.base_model_prefix}."
    return not name.startswith(prefix) or name.startswith(f"{prefix}pooler.")


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """The layer whose outputs are the logits, one a class."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return next(layer for layer in reversed(layers) if layer.out_features == model.config.num_labels)


def output_weights(model: PreTrainedModel) -> set[str]:
    """The names of its weights."""
    own = {id(parameter) for parameter in output_layer(model).parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


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
