"""A stock classifier and its tokenizer, to train or as it was trained: loaded safely and in float32."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from sst2.config.class_names import are_generic, in_words, names_in_order, order_of_classes
from sst2.config.flag_groups import SAMPLE
from sst2.config.settings import Settings
from sst2.data.hub import reading_from_hub
from sst2.data.sample import sample_config, sample_tokenizer
from sst2.models.architecture import (
    classifier_class,
    display_name,
    dropouts,
    first_position,
    is_of_head,
    max_positions,
    output_layer,
    output_weights,
    pads_with_a_token,
    plain_config,
    skeleton,
    tiny,
)
from sst2.models.attention import TRITON_ATTENTION
from sst2.models.packed_classifier import PackedClassifier
from sst2.models.tokenizer import panics_as_errors, read_tokenizer
from sst2.models.trial import pack_classifier, require_encoder
from sst2.utils.errors import UserError

logger = logging.getLogger(__name__)

OF_LAYER = r"\.layers?\.(\d+)\."  # in the name of a weight
KINDS = {"multi_label_classification": "several labels at once", "regression": "numbers"}  # by `problem_type`


def load_tokenizer(settings: Settings) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, as `read_tokenizer` gives it.

    Raises:
        UserError: it cannot be had, the checkpoint is no encoder, or the model does not fit the tokenizer or
            `--max_length`.
    """
    name = settings.model_name_or_path
    if name == SAMPLE:
        tokenizer: PreTrainedTokenizerBase = sample_tokenizer()
        config: PreTrainedConfig = sample_config(len(tokenizer))
    else:
        config, tokenizer = _read_tokenizer("--model_name_or_path", name, settings.model_revision)
    if settings.max_length > (limit := max_positions(config)):
        raise UserError(f"--max_length {settings.max_length} is more than the {limit} positions of {name}")
    _check_vocabulary("--model_name_or_path", name, config, tokenizer)
    return tokenizer


def load_model(settings: Settings, tokenizer: PreTrainedTokenizerBase, with_weights: bool = True) -> PackedClassifier:
    """The checkpoint with a head for the run's classes, in float32 whatever it was stored in.

    Only safetensors are read and no remote code runs. The head is new, drawn from torch's random state, unless the
    checkpoint has one of as many classes: then its rows are put in the order of the run's classes, by their names.

    Without `with_weights`, all weights are drawn, for a run's checkpoint to take their place.

    Raises:
        UserError: it cannot be had, is incomplete, or has a head of classes with other names.
    """
    labels = dict(enumerate(settings.label_names))
    options: dict[str, Any] = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    if settings.dropout is not None:
        options["dropout"] = settings.dropout
    options["pad_token_id"] = tokenizer.pad_token_id
    name = settings.model_name_or_path
    if name == SAMPLE or not with_weights:
        config: PreTrainedConfig = (
            sample_config(len(tokenizer))
            if name == SAMPLE
            else AutoConfig.from_pretrained(name, trust_remote_code=False)
        )
        config = _with_options(config, options)
        model = pack_classifier(classifier_class(config)(config))
        model.drawn = frozenset(model.state_dict())
    else:
        model, fresh, class_names = _read_weights("--model_name_or_path", name, settings.model_revision, options)
        model.drawn = frozenset(fresh)
        head = "with its classification head" if not fresh else "a new classification head"
        if fresh and fresh.isdisjoint(output_weights(model)):
            head = f"with its classification head, but for {sorted(fresh)[0]} and the like, which are new"
        logger.info("%s: %s", name, head)
        if fresh.isdisjoint(output_weights(model)):
            _order_classes(model, name, class_names, settings.label_names)
    if settings.kernels == "triton":
        if model.can_pack:
            model.config._attn_implementation = TRITON_ATTENTION
        else:
            logger.warning("--kernels triton is for packed batches: attention runs without it")
    return model


def load_classifier(flag: str, name: str) -> tuple[PackedClassifier, PreTrainedTokenizerBase]:
    """A trained classifier of two classes or more, with its own names of them, in float32; and its tokenizer.

    Raises:
        UserError: it cannot be had, or is no such classifier; `flag` is what gave the name.
    """
    config, tokenizer = _read_tokenizer(flag, name, "main")
    if len(config.id2label or {}) < 2 or config.problem_type not in (None, "single_label_classification"):
        kind = KINDS.get(str(config.problem_type), "one class, or of numbers")
        raise UserError(f"{flag} {name} is a model of {kind}: give a classifier of two classes or more")
    _check_vocabulary(flag, name, config, tokenizer)
    model, fresh, _ = _read_weights(flag, name, "main", {})
    if fresh:
        raise UserError(
            f"{flag} {name} has no trained classification head ({min(fresh)} is missing): fine-tune it first"
        )
    return model, tokenizer


def num_bytes(model: torch.nn.Module) -> int:
    """Of the weights, before a strategy spreads them over the ranks."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _with_options(config: PreTrainedConfig, options: dict[str, Any]) -> PreTrainedConfig:
    """The config with these values; `dropout` stands for every probability of dropout.

    The embedding of `pad_token_id` alone is not trained, so it is the tokenizer's. Where positions are counted from the
    config's, it stays.
    """
    values = dict(options)
    if "dropout" in values:
        values |= dict.fromkeys(dropouts(config), values.pop("dropout"))
    if "pad_token_id" in values and pads_with_a_token(config) and first_position(skeleton(tiny(config))):
        del values["pad_token_id"]
    config.update(values)
    return config


def _read_config(flag: str, name: str, revision: str) -> PreTrainedConfig:
    """All of a config.json."""
    config: PreTrainedConfig = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    require_encoder(f"{flag} {name}", config)
    if getattr(config, "quantization_config", None):
        raise UserError(f"{flag} {name} is quantized: give the checkpoint that it was made from")
    return config


def _read_tokenizer(flag: str, name: str, revision: str) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        if (Path(name) / "model" / "config.json").is_file():
            raise UserError(f"{flag} {name} is a run: give {Path(name) / 'model'}")
        raise UserError(f"{flag} {name} has no config.json: give a folder written by save_pretrained")
    with reading_from_hub(flag, name, "model", revision), panics_as_errors():
        config = _read_config(flag, name, revision)
        return config, read_tokenizer(flag, name, revision, config)


def _order_classes(model: PackedClassifier, name: str, class_names: list[str], label_names: list[str]) -> None:
    """Put the rows of a trained head, which the checkpoint calls `class_names`, in the order of the run's classes."""
    mine, own = in_words(label_names), in_words(class_names)
    if are_generic(class_names):
        logger.warning("%s: its classes have no names (%s): they are taken for %s, by number", name, own, mine)
        return
    order = order_of_classes(class_names, label_names)
    if order is None:
        raise UserError(
            f"--model_name_or_path {name} has a classification head for {own}, where the run's classes are {mine}: "
            "call the run's classes so by --label_names, or rename the checkpoint's in id2label of its config.json "
            "(LABEL_0, LABEL_1 and so on go by number)"
        )
    if order != sorted(order):
        logger.info("%s: the rows of its head are for %s: put in the order %s", name, own, mine)
        with torch.no_grad():
            for parameter in output_layer(model).parameters():
                parameter.copy_(parameter[order].clone())


def _read_weights(
    flag: str, name: str, revision: str, options: dict[str, Any]
) -> tuple[PackedClassifier, set[str], list[str]]:
    """The model, the names of the weights of its head that the checkpoint lacks, and what it calls its classes.

    `options` of its config take the place of the checkpoint's.
    """
    with reading_from_hub(flag, name, "model", revision):
        stored = _read_config(flag, name, revision)
        names: Any = stored.id2label
        class_names = names_in_order(names)
        config = _with_options(plain_config(stored), options)
        _require_own_safetensors(flag, name, revision)
        try:
            loaded: Any = classifier_class(config).from_pretrained(
                name,
                config=config,
                revision=revision,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # a head of other classes is replaced
                output_loading_info=True,
            )
        except SafetensorError as error:
            raise UserError(f"{flag} {name}: its safetensors file is damaged ({error})") from None
    model, report = loaded
    fresh = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    lost = sorted(key for key in fresh if not is_of_head(model, key))
    if lost:
        raise UserError(f"{flag} {name} lacks {len(lost)} weights of a {display_name(config)}, {lost[0]} for one")
    layers = config.num_hidden_layers
    of_layers = {key: int(found[1]) for key in report["unexpected_keys"] if (found := re.search(OF_LAYER, key))}
    if unknown := sorted(key for key, layer in of_layers.items() if layer < layers):
        raise UserError(
            f"{flag} {name} has weights that transformers' {display_name(config)} does without, {unknown[0]} for one: "
            "it would not be the model that was trained"
        )
    if of_layers:
        logger.warning("%s: %d weights of more layers than the %d of its config", name, len(of_layers), layers)
    return pack_classifier(model), fresh, class_names


def _require_own_safetensors(flag: str, name: str, revision: str) -> None:
    """Raises UserError: the weights are not the checkpoint's own safetensors files alone."""

    def find(file: str) -> str | None:
        return cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)

    if find("adapter_config.json"):  # peft, where it is installed, would add its weights to another checkpoint's
        raise UserError(f"{flag} {name} holds an adapter: merge it into its base model first (merge_and_unload)")
    if (Path(name) / SAFE_WEIGHTS_NAME).is_file() or (index := find(SAFE_WEIGHTS_INDEX_NAME)) is None:
        return
    for file in json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values():
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(f"{flag} {name}: {SAFE_WEIGHTS_INDEX_NAME} names {file}: no safetensors file beside it")


def _check_vocabulary(flag: str, name: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    entries = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))  # some vocabularies leave ids out
    if entries > config.vocab_size:
        raise UserError(
            f"{flag} {name}: the tokenizer has {entries} entries, the model {config.vocab_size}: "
            "they do not belong together"
        )
