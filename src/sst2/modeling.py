"""The stock DistilBERT classifier and its tokenizer: loaded safely and in float32."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, DistilBertForSequenceClassification, DistilBertTokenizer, PreTrainedTokenizerBase

from sst2.arguments import SAMPLE, Settings
from sst2.errors import UserError
from sst2.hub import hub_errors
from sst2.reading import LABEL_NAMES
from sst2.sample import sample_config, sample_tokenizer


def load_tokenizer(settings: Settings) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, as the DistilBERT class: it gives no `token_type_ids`, which DistilBERT does not take.

    Raises:
        UserError: it cannot be had, or the folder holds none.
    """
    if settings.model_name_or_path == SAMPLE:
        return sample_tokenizer()
    name = settings.model_name_or_path
    _require_distilbert(settings)
    with hub_errors("--model_name_or_path", name):
        tokenizer = DistilBertTokenizer.from_pretrained(name, revision=settings.model_revision)
    if tokenizer.vocab_size <= len(tokenizer.all_special_tokens):
        raise UserError(f"--model_name_or_path {name} holds no vocabulary: it needs tokenizer.json or vocab.txt")
    return tokenizer


def load_model(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> DistilBertForSequenceClassification:
    """DistilBERT with a two-class head, in float32 whatever the checkpoint was stored in.

    Only safetensors are read and no remote code runs. The head is new, drawn from torch's random state, unless the
    checkpoint has one of two classes.

    Raises:
        UserError: it cannot be had, is no DistilBERT, or does not fit the tokenizer or `--max_length`.
    """
    labels = dict(enumerate(LABEL_NAMES))
    options = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    if settings.dropout is not None:
        options |= dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"), settings.dropout)
    name = settings.model_name_or_path
    if name == SAMPLE:
        config = sample_config(len(tokenizer))
        for option, value in options.items():
            setattr(config, option, value)
        model = DistilBertForSequenceClassification(config)
    else:
        with hub_errors("--model_name_or_path", name):
            try:
                model = DistilBertForSequenceClassification.from_pretrained(
                    name, revision=settings.model_revision, dtype=torch.float32, use_safetensors=True, **options
                )
            except SafetensorError as error:
                raise UserError(f"--model_name_or_path {name}: its safetensors file is damaged ({error})") from None
    _check_fit(settings, model, tokenizer)
    return model


def _require_distilbert(settings: Settings) -> None:
    name = settings.model_name_or_path
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UserError(f"--model_name_or_path {name} has no config.json: give a folder written by save_pretrained")
    with hub_errors("--model_name_or_path", name):
        config = AutoConfig.from_pretrained(name, revision=settings.model_revision, trust_remote_code=False)
    if config.model_type != "distilbert":
        raise UserError(f"--model_name_or_path {name} is a {config.model_type}: give a DistilBERT checkpoint")


def _check_fit(
    settings: Settings, model: DistilBertForSequenceClassification, tokenizer: PreTrainedTokenizerBase
) -> None:
    name, config = settings.model_name_or_path, model.config
    if settings.max_length > config.max_position_embeddings:
        raise UserError(
            f"--max_length {settings.max_length} is more than the {config.max_position_embeddings} positions of {name}"
        )
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"--model_name_or_path {name}: the tokenizer has {len(tokenizer)} entries, the model {config.vocab_size}: "
            "they do not belong together"
        )
