"""The checkpoint's tokenizer as its files have it: what `AutoTokenizer` gives, compared with `tokenizer.json`.

transformers rebuilds the tokenizer of a named class, such as `DistilBertTokenizer`, from the vocabulary and a few
settings, whatever `tokenizer.json` says beside it. `pipeline` reads a sentence as `AutoTokenizer` does, and other
programs read it by the file: a checkpoint in which the two differ has no one tokenizer to train with.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from sst2.models.architecture import max_positions
from sst2.utils.errors import UserError

logger = logging.getLogger(__name__)

MIN_LENGTH = 3  # tokens that a sentence may be cut to: [CLS], one of its own, [SEP]
NUM_WORDS = 240  # of the vocabulary, in probes
CAPITAL_SHARE = 0.01  # of a vocabulary: more of them are no accident
TEXTS = (
    "a gripping, funny film",
    "A Gripping, FUNNY Film",
    "  two  spaces,\ttabs\nand\r\nlines  ",
    "Café, naïve, Ångström, cafe\u0301, ﬁ",
    "İstanbul, Straße, ὈΔΥΣΣΕΎΣ, ñandú",
    "電影很好, 映画, 영화",
    "смешной фильм, فيلم جيد, סרט טוב, फ़िल्म",
    "🎬 👍🏽 ☺️",
    "it's n't 'quoted' \"so\" — 1,234.50 $5 50% #1 a_b C++ http://x.y/z?q=1",
    "zero\u200bwidth, no\u00a0break, soft\u00adhyphen, \ufeffmark, bell\u0007, \ufffd",
    "supercalifragilistic" * 8,
    " ",
    "",
)


def read_tokenizer(flag: str, name: str, revision: str, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, without `token_type_ids`: a model takes zeros without them, as one sentence has.

    Raises:
        UserError: the folder holds no vocabulary, or it has no tokenizer that can be trained with and exported.
    """
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    encoder = getattr(tokenizer, "backend_tokenizer", None)
    if encoder is None:
        raise UserError(f"{flag} {name}: {type(tokenizer).__name__} has no fast form: save it as a tokenizer.json")
    if tokenizer.vocab_size <= len(tokenizer.all_special_tokens):
        raise UserError(f"{flag} {name} holds no vocabulary: it needs tokenizer.json or vocab.txt")
    if tokenizer.pad_token_id is None:
        raise UserError(f'{flag} {name}: its tokenizer has no padding token: name one as "pad_token"')
    file = cached_file(
        name,
        "tokenizer.json",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    _require_same_ids(f"{flag} {name}", tokenizer, Path(file) if file else None)
    if getattr(config, "type_vocab_size", 0) > 1 and any(_uncut(copy.deepcopy(encoder)).encode(TEXTS[0]).type_ids):
        raise UserError(
            f"{flag} {name}: its tokenizer gives one sentence token_type_ids other than 0, which none can take"
        )
    _warn_of_capitals(name, encoder)
    _make_plain(tokenizer, config)
    if not tokenizer.model_max_length >= MIN_LENGTH:
        raise UserError(f"{flag} {name}: its tokenizer cuts sentences to {tokenizer.model_max_length} tokens")
    return tokenizer


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """tokenizers, which is written in Rust, panics over some files: an exception that `except Exception` lets pass.

    Raises:
        ValueError: in its place.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"its tokenizer's files are damaged ({error})") from None


def probes(encoder: Tokenizer) -> list[str]:
    """Sentences on which two tokenizers with this vocabulary differ, if they do: odd texts, and words of its own."""
    vocabulary = sorted(encoder.get_vocab(with_added_tokens=False))
    some = vocabulary[:: max(1, len(vocabulary) // NUM_WORDS)]
    words = " ".join(word.removeprefix("##").removesuffix("</w>").strip("▁Ġ") for word in some)
    added = " ".join(token.content for token in encoder.get_added_tokens_decoder().values())
    return [*TEXTS, words, words.upper(), words.title(), f"between{added} them", f"{added}"]


def _require_same_ids(who: str, tokenizer: PreTrainedTokenizerBase, file: Path | None) -> None:
    """Raises UserError: `pipeline`, this project and `tokenizer.json` do not read all sentences alike."""
    encoder, kind = _uncut(copy.deepcopy(tokenizer.backend_tokenizer)), type(tokenizer).__name__
    if len({tuple(encoder.encode(text).ids[:1]) for text in ("", *TEXTS)}) > 1 or not encoder.encode("").ids:
        raise UserError(
            f"{who}: its tokenizer puts no token such as [CLS] before a sentence, by which it is classified"
        )
    texts = probes(encoder)
    ids = [encoding.ids for encoding in encoder.encode_batch(texts)]  # as this project reads
    if unknown := {*chain.from_iterable(ids)} - {*encoder.get_vocab().values()}:
        raise UserError(f"{who}: its tokenizer gives the id {unknown.pop()}, which its vocabulary does not have")
    if file is not None:
        stored = _uncut(Tokenizer.from_file(str(file)))
        if odd := _first_difference(texts, ids, [encoding.ids for encoding in stored.encode_batch(texts)]):
            raise UserError(
                f"{who}: AutoTokenizer makes a {kind} of it, which reads {odd!r} differently from its tokenizer.json: "
                'if that is right, set "tokenizer_class": "PreTrainedTokenizerFast" in its tokenizer_config.json'
            )
    if odd := _first_difference(texts, ids, [tokenizer(text)["input_ids"] for text in texts]):
        raise UserError(
            f"{who}: its tokenizer_config.json makes {kind} read {odd!r} as no tokenizer.json can: take out settings "
            "such as split_special_tokens"
        )


def _first_difference(texts: list[str], some: list[list[int]], others: list[list[int]]) -> str | None:
    """The beginning of the first text whose ids differ."""
    rows = zip(texts, some, others, strict=True)
    return next((text[:60] for text, one, other in rows if one != other), None)


def _uncut(encoder: Tokenizer) -> Tokenizer:
    encoder.no_padding()
    encoder.no_truncation()
    return encoder


def _warn_of_capitals(name: str, encoder: Tokenizer) -> None:
    normalizer = encoder.normalizer
    if normalizer is None or normalizer.normalize_str("A") == "A":
        return
    vocabulary = encoder.get_vocab(with_added_tokens=False)
    lost = sorted(word for word in vocabulary if word != word.lower() and not word.startswith("["))
    if len(lost) > CAPITAL_SHARE * len(vocabulary):
        logger.warning(
            "%s: %d of %d entries of its vocabulary have capital letters, %s for one, but its tokenizer lower-cases "
            'sentences: should its tokenizer_config.json say "do_lower_case": false?',
            *(name, len(lost), len(vocabulary), lost[len(lost) // 2]),
        )


def _make_plain(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Leave nothing in it but what makes ids: it is exported as it is then."""
    _uncut(tokenizer.backend_tokenizer)  # a file may bring padding and truncation of its own
    if "token_type_ids" in tokenizer.model_input_names:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # which are exported
    tokenizer.padding_side = "right"  # positions count from the first place, and the head reads it
    for needless in ("auto_map", "max_length", "stride", "truncation_strategy", "pad_to_multiple_of"):
        tokenizer.init_kwargs.pop(needless, None)
    # a folder without this setting has no limit, and the exported model would meet sentences that it cannot take
    tokenizer.model_max_length = min(tokenizer.model_max_length, max_positions(config))
