"""The stock DistilBERT classifier and its tokenizer: loaded safely and in float32."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, DistilBertConfig, DistilBertTokenizer, PreTrainedTokenizerBase

from sst2.errors import UserError
from sst2.hub import reading_from_hub
from sst2.packed import PackedClassifier
from sst2.reading import LABEL_NAMES
from sst2.sample import sample_config, sample_tokenizer
from sst2.settings import SAMPLE, Settings

logger = logging.getLogger(__name__)

HEAD = ("pre_classifier.", "classifier.")


def load_tokenizer(settings: Settings) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, as the DistilBERT class: it gives no `token_type_ids`, which the model does not take.

    Raises:
        UserError: it cannot be had, the checkpoint is no DistilBERT, the folder holds no vocabulary, or the model does
            not fit the tokenizer or `--max_length`.
    """
    name, revision = settings.model_name_or_path, settings.model_revision
    if name == SAMPLE:
        tokenizer = sample_tokenizer()
        _check_fit(settings, sample_config(len(tokenizer)), tokenizer)
        return tokenizer
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UserError(f"--model_name_or_path {name} has no config.json: give a folder written by save_pretrained")
    with reading_from_hub("--model_name_or_path", name, "model", revision):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        if config.model_type != "distilbert":
            raise UserError(f"--model_name_or_path {name} is a {config.model_type} model: give a DistilBERT checkpoint")
        try:
            tokenizer = DistilBertTokenizer.from_pretrained(name, revision=revision)
        except (KeyError, TypeError) as error:
            raise UserError(f"--model_name_or_path {name}: its tokenizer files are damaged ({error!r})") from None
    if tokenizer.vocab_size <= len(tokenizer.all_special_tokens):
        raise UserError(f"--model_name_or_path {name} holds no vocabulary: it needs tokenizer.json or vocab.txt")
    _check_fit(settings, config, tokenizer)
    # a folder without this setting has no limit, and the exported model would meet sentences that it cannot take
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    return tokenizer


def load_model(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> PackedClassifier:
    """DistilBERT with a two-class head, in float32 whatever the checkpoint was stored in.

    Only safetensors are read and no remote code runs. The head is new, drawn from torch's random state, unless the
    checkpoint has one of two classes.

    Raises:
        UserError: it cannot be had, or is incomplete.
    """
    labels = dict(enumerate(LABEL_NAMES))
    options = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    if settings.dropout is not None:
        options |= dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"), settings.dropout)
    if settings.model_name_or_path == SAMPLE:
        config = sample_config(len(tokenizer))
        config.update(options)
        model = PackedClassifier(config)
    else:
        model = _load_checkpoint(settings, options)
    return model


def num_bytes(model: torch.nn.Module) -> int:
    """Of the weights, before a strategy spreads them over the ranks."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _load_checkpoint(settings: Settings, options: dict[str, Any]) -> PackedClassifier:
    name, revision = settings.model_name_or_path, settings.model_revision
    with reading_from_hub("--model_name_or_path", name, "model", revision):
        try:
            loaded: Any = PackedClassifier.from_pretrained(
                name,
                revision=revision,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # a head of other classes is replaced
                output_loading_info=True,
                **options,
            )
        except SafetensorError as error:
            raise UserError(f"--model_name_or_path {name}: its safetensors file is damaged ({error})") from None
    model, report = loaded
    fresh = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    lost = sorted(key for key in fresh if not key.startswith(HEAD))
    if lost:
        raise UserError(f"--model_name_or_path {name} lacks {len(lost)} weights of a DistilBERT, {lost[0]} for one")
    logger.info("%s: %s", name, "a new classification head" if fresh else "with its classification head")
    return model


def _check_fit(settings: Settings, config: DistilBertConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    name = settings.model_name_or_path
    if settings.max_length > config.max_position_embeddings:
        raise UserError(
            f"--max_length {settings.max_length} is more than the {config.max_position_embeddings} positions of {name}"
        )
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"--model_name_or_path {name}: the tokenizer has {len(tokenizer)} entries, the model {config.vocab_size}: "
            "they do not belong together"
        )
