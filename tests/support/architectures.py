"""Tiny checkpoints of many architectures, with random weights, configured as the published ones are."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from tests.support.odd_checkpoints import BERT, ROBERTA, trained

SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
BASE = SHAPE | {"max_position_embeddings": 512, "initializer_range": 0.2}
# By model_type: the kind of tokenizer, and the config. RoBERTa's kind counts positions from its padding's id + 1.
ROBERTA_LIKE = BASE | {"max_position_embeddings": 514, "type_vocab_size": 1}
PACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "distilbert": (
        "WordPiece uncased",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "initializer_range": 0.2},
    ),
    "bert": ("WordPiece uncased", BASE),
    "roberta": ("byte-level BPE", ROBERTA_LIKE),
    "xlm-roberta": ("Unigram", ROBERTA_LIKE),
    "camembert": ("Unigram", ROBERTA_LIKE),
    "electra": ("WordPiece uncased", BASE | {"embedding_size": 16}),
    "albert": ("Unigram", BASE | {"embedding_size": 16}),
    # a token sees 8 to each side, in all layers but the first and the fourth
    "modernbert": ("byte-level BPE", BASE | {"num_hidden_layers": 4, "local_attention": 16}),
    "eurobert": ("byte-level BPE", BASE | {"num_key_value_heads": 2}),
}
PADDED: dict[str, tuple[str, dict[str, Any]]] = {
    "deberta-v2": (
        "Unigram",
        BASE
        | {
            "relative_attention": True,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
            "max_relative_positions": -1,
        },
    ),
    "mpnet": ("byte-level BPE", ROBERTA_LIKE),
}
WHOLE_LAST_LAYER = {"albert", "modernbert", "eurobert"}  # whose last block is of no known kind
COUNTED_FROM_PADDING = [name for name, (_, values) in (PACKED | PADDED).items() if values == ROBERTA_LIKE]


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A trained tokenizer with its special tokens."""
    tokens = {f"{name}_token": token for name, token in (ROBERTA if kind == "byte-level BPE" else BERT).items()}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(trained(kind)), model_max_length=512, **tokens)


def config_of(name: str, **changes: Any) -> Any:
    """The config of one of `PACKED` or `PADDED`, with these changes."""
    kind, values = (PACKED | PADDED)[name]
    tokenizer = tokenizer_of(kind)
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.cls_token_id}
    ids |= {"eos_token_id": tokenizer.sep_token_id, "vocab_size": len(tokenizer)}
    return AutoConfig.for_model(name, **values | ids | changes)


def classifier_of(name: str, **changes: Any) -> Any:
    """A stock classifier with random weights, none of them 0."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config_of(name, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def write_encoder(name: str, folder: Path, **changes: Any) -> Path:
    """A folder as encoders are published: with the head of masked language modeling, and a tokenizer."""
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(config_of(name, **changes)).save_pretrained(folder)
    tokenizer_of((PACKED | PADDED)[name][0]).save_pretrained(folder)
    return folder
