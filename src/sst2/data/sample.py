"""The embedded sample: generated film-review phrases, a vocabulary trained on them, and a tiny model's shape.

It lets the whole fine-tuning path be tried in seconds and with no network. The phrases look like those of SST-2
(lower case, spaces around punctuation, many short fragments), and a share of them cannot be judged word by word:
negation, contrast and comparison turn the sentiment of the words they govern. The validation phrases draw their
subjects, some of their templates and a few of their sentiment words from lists that training never sees, so that
validation accuracy means generalization.

The grammar is data. A rule maps a symbol to its alternatives, and an alternative may name other symbols: `<x>` is
expanded with the label of the sentence around it, `<~x>` with the opposite label. Alternatives that only fit one
label stand under the symbol followed by `+` or `-`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from transformers import DistilBertConfig, DistilBertTokenizer

Split = Literal["train", "validation"]
Rules = dict[tuple[str, int], tuple[str, ...]]  # alternatives by symbol and label
T = TypeVar("T")

NEGATIVE, POSITIVE = 0, 1
SEED = 2013
SIZE = 6000  # sentences of both splits together
VALIDATION_EVERY = 10  # one sentence in so many is for validation
MAX_WORDS = 40
VOCAB_SIZE = 600  # too few for every word, so that the rarer ones are split into pieces
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Plain adjectives may be negated: "never dull" is praise. Strong ones may not: "not dreadful" would be unclear.
WORDS = {
    "plain+": """funny | gripping | clever | fresh | witty | charming | moving | touching | engaging | inspired |
        convincing | memorable | lively | absorbing | original | subtle | tender | thoughtful | graceful | heartfelt |
        thrilling | compelling | delightful | exciting | entertaining | intelligent""",
    "plain-": """dull | boring | bland | lifeless | tired | stale | predictable | tedious | shallow | uninspired |
        unconvincing | forgettable | tiresome | contrived | unoriginal | clumsy | lazy | hollow | muddled | dreary |
        pointless | formulaic | irritating | exhausting | unfunny | sloppy""",
    "strong+": "superb | wonderful | terrific | excellent | brilliant | splendid | lovely | marvelous",
    "strong-": "awful | terrible | dreadful | horrible | atrocious | appalling | lousy | wretched",
    "verdict+": "gem | treat | triumph | delight | joy | pleasure | winner | success | work of art",
    "verdict-": "mess | bore | chore | disaster | failure | misfire | letdown | waste of time | mistake",
    "quality+": "charm | wit | energy | style | heart | warmth | imagination | good ideas | big laughs",
    "quality-": "flaws | cliches | rough edges | loose ends | cheap jokes | silliness | stock characters",
    "do+": """hold your attention | keep you guessing | make you laugh | make you think | pay off | win you over |
        linger in the mind | work on every level | deliver the goods | ring true | warm the heart |
        get under your skin | reward your patience | find the right tone""",
    "do-": """fall flat | lose its way | run out of ideas | run out of steam | test your patience | put you to sleep |
        waste its cast | drag | wear out its welcome | ring false | leave you cold | insult your intelligence |
        repeat itself | settle for cheap laughs""",
    "remark+": """do not miss it | well worth your time | worth every minute | see it twice |
        i loved every minute of it | i wanted it to go on | you will not want it to end | what a joy""",
    "remark-": """do not bother | not worth your time | save your money | stay at home | i hated every minute of it |
        i wanted it to stop | you will want it to end | what a bore""",
    "loved+": "loved | enjoyed | adored",
    "loved-": "hated | disliked | loathed",
    "well+": "beautifully | brilliantly | wonderfully | skilfully | superbly",
    "well-": "badly | poorly | clumsily | lazily | terribly",
    "genre": "film | movie | comedy | drama | thriller | picture | sequel | musical",
    "aspect": "script | story | acting | writing | plot | dialogue",
    "aspects": "characters | actors | performances | action scenes",
    "craft": "lighting | editing | music",
    "very": "very | truly | thoroughly | consistently | remarkably | quite | somewhat | surprisingly",
    "utterly": "utterly | absolutely | simply | truly",
}

OF_SPLIT: dict[Split, dict[str, str]] = {
    "train": {
        "genre": "romance | western | documentary | love story | horror film | action movie | family drama | satire",
        "aspect": "direction | ending | second half | premise | humor | opening | first act",
        "aspects": "lead actors | love scenes | fight scenes | plot twists | minor characters | songs",
        "craft": "camera work | set design | sound",
        "made": "acted | written | directed | filmed | cast",
        "who": "two brothers | three old friends | a widow and her son | a teacher and his pupils | two spies",
        "place": "a small town | the desert | a mountain village | postwar london | a crowded city",
        "topic": "love and loss | growing up | a family in trouble | a bank robbery | life after war | <who>",
        "denial": "nobody could accuse it of being <~plain>",
        "contrast": "<~point> ; still , <claim>",
    },
    "validation": {
        "genre": "mystery | ghost story | war film | road movie | crime drama",
        "aspect": "narrative | first half | final act | screenplay",
        "aspects": "supporting actors | chase scenes | villains",
        "craft": "photography | sound design",
        "made": "acted | directed | staged | edited",
        "who": "two sisters | four students | a farmer and his wife | a nurse and her patients | two thieves",
        "place": "a fishing port | the far north | an old castle | colonial india | a quiet suburb",
        "topic": "hope and regret | first love | a trial | a stolen painting | the price of fame | <who>",
        "plain+": "riveting",
        "plain-": "insipid",
        "denial": "you could hardly call it <~plain>",
        "contrast": "even though <~point> , <claim>",
    },
}

GRAMMAR = {
    "sentence": 18 * "<phrase> | " + 8 * "<clause> | " + 6 * "<denial> | " + 5 * "<contrast> | " + "<long>",
    "phrase": """<described> | <plain> | <plain> and <plain> | <plain> , <plain> <genre> | <thing> | <thing> |
        a <plain> <genre> about <topic> | a <strong> <genre> about <topic> | <does> | <does> and <does> |
        <well> <made> | <well> <made> and <described> | i <loved> this <genre> | <remark> | <plain> <aspects> |
        full of <quality> | as <plain> as any <genre> this year""",
    "described": "<plain> | <plain> | <very> <plain> | <strong> | <utterly> <strong>",
    "thing": """a <plain> <genre> | a <plain> , <plain> <genre> | a <very> <plain> <genre> | a <strong> <genre> |
        a <verdict> | a real <verdict> | nothing short of a <verdict> | a <plain> <verdict>""",
    "clause": "<point> | <claim>",
    # A point can be conceded, and the film still succeed or fail; a claim settles the matter.
    "point": """the <aspect> is <described> | the <aspects> are <described> | the <craft> is <strong> |
        the <aspect> is a <verdict> | it is <well> <made> | it is full of <quality>""",
    "claim": """the <genre> is <described> | the <genre> is a real <verdict> | it 's <thing> | it <does> |
        the <genre> <does> | the <aspect> is <described>""",
    "denied": "never <~plain> | hardly <~plain> | far from <~plain> | anything but <~plain>",
    "denial": """<denied> | <denied> | the <aspect> is <denied> | the <aspects> are <denied> | not a <~plain> <genre> |
        it 's not a <~plain> <genre> | hardly a <~verdict> | it never <~does> | no one could call it <~plain> |
        there is nothing <~plain> about the <aspect>""",
    "denial-": "barely <~plain> | not very <~plain> | it fails to <~do> | it does n't <~do>",
    "contrast": """<~point> , but <claim> | <~point> , but it is <denied> | <~plain> but <plain> |
        a <~plain> but ultimately <plain> <genre> | although <~point> , <claim> | <claim> , although <~point> |
        despite its <~plain> <aspect> , <claim> | for all its <~quality> , <claim>""",
    "long": """a <plain> <genre> about <topic> that <does> and <does> , with <plain> <aspects> |
        the <genre> , in which <who> meet in <place> , <does> , and the <aspects> are <described> |
        from the opening scene , in which <who> arrive in <place> , to the very last shot , it <does> |
        what begins as a <~plain> tale of <topic> in <place> soon turns into a <plain> , <plain> <genre> |
        set in <place> and full of <~quality> , this <genre> about <topic> still <does> , and <point> |
        it takes its time to show us <who> in <place> , and <~point> , but in the end <point> and <claim>""",
}


# --- Sentences --------------------------------------------------------------------------------------------------------


def sample_sentences(split: Split) -> tuple[list[str], list[int]]:
    """Return the distinct sentences of one split and their labels (1 is positive)."""
    labeled = _generate()[split]
    return list(labeled), list(labeled.values())


@cache
def _generate() -> dict[Split, dict[str, int]]:
    """Map the sentences of each split to their labels, no sentence being in both."""
    rng = Random(SEED)
    rules = {split: _rules(of_split) for split, of_split in OF_SPLIT.items()}
    samples: dict[Split, dict[str, int]] = {split: {} for split in OF_SPLIT}
    for turn in range(SIZE):
        # The splits take turns, so that each gets its share of the few one-word phrases.
        split: Split = "validation" if turn % VALIDATION_EVERY == 0 else "train"
        sentence, label = _draw(rng, rules[split], taken=samples)
        samples[split][sentence] = label
    return samples


def _draw(rng: Random, rules: Rules, taken: dict[Split, dict[str, int]]) -> tuple[str, int]:
    """Make sentences until one is new to both splits and reads well."""
    while True:
        label = _pick(rng, (NEGATIVE, POSITIVE))
        sentence = _with_articles(_expand(rng, rules, "sentence", label))
        if _reads_well(sentence) and not any(sentence in sample for sample in taken.values()):
            return sentence, label


def _rules(of_split: dict[str, str]) -> Rules:
    """Collect the alternatives of every symbol under either label, for one split."""
    rules: Rules = {}
    for source in (WORDS, of_split, GRAMMAR):
        for name, text in source.items():
            for label in {"-": (NEGATIVE,), "+": (POSITIVE,)}.get(name[-1], (NEGATIVE, POSITIVE)):
                key = (name.rstrip("+-"), label)
                rules[key] = rules.get(key, ()) + alternatives(text)
    third_person = {("does", label): tuple(map(_third_person, rules["do", label])) for label in (NEGATIVE, POSITIVE)}
    return rules | third_person


def alternatives(text: str) -> tuple[str, ...]:
    """What stands between bars, each on one line."""
    return tuple(" ".join(part.split()) for part in text.split("|"))


def _third_person(deed: str) -> str:
    return re.sub(r"^\w+", r"\g<0>s", deed)


def _expand(rng: Random, rules: Rules, symbol: str, label: int) -> str:
    """Rewrite a symbol into words of the given label."""

    def expanded(match: re.Match[str]) -> str:
        return _expand(rng, rules, match[2], 1 - label if match[1] else label)

    return re.sub(r"<(~?)(\w+)>", expanded, _pick(rng, rules[symbol, label]))


def _pick(rng: Random, alternatives: Sequence[T]) -> T:
    # `random()` is the one draw whose sequence Python promises to keep across versions; `choice` is not.
    return alternatives[int(rng.random() * len(alternatives))]


def _with_articles(sentence: str) -> str:
    return re.sub(r"\ba (?=[aeiou])", "an ", sentence)


def _reads_well(sentence: str) -> bool:
    """Tell whether the sentence is short enough and repeats no word or stem but the small ones."""
    words = sentence.split()
    stems = [word[:5] for word in words if len(word) > 3]
    return len(words) <= MAX_WORDS and len(stems) == len(set(stems))


# --- Tokenizer and model ----------------------------------------------------------------------------------------------


def sample_tokenizer() -> DistilBertTokenizer:
    """Return a DistilBERT tokenizer whose WordPiece vocabulary is trained on the training sentences."""
    from transformers import DistilBertTokenizer

    return DistilBertTokenizer(vocab=_train_vocabulary(sample_sentences("train")[0]), model_max_length=512)


def _train_vocabulary(sentences: list[str]) -> dict[str, int]:
    """Train a WordPiece vocabulary, the same in every process."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers the inner letters ("##a") in the order of a randomly seeded hash map, and settles ties between
    # merges by those numbers. Naming the letters up front, in order, makes numbers and merges reproducible.
    letters = sorted(set("".join(sentences)) - {" "})
    reserved = [*SPECIAL_TOKENS, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(vocab_size=VOCAB_SIZE, special_tokens=reserved, show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    return dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


def sample_config(vocab_size: int) -> DistilBertConfig:
    """Return the shape of a DistilBERT small enough to be trained from scratch in seconds."""
    from transformers import DistilBertConfig

    return DistilBertConfig(
        vocab_size=vocab_size,
        dim=64,
        n_layers=2,
        n_heads=4,
        hidden_dim=256,
        # The usual 0.02 suits a width of 768; at this width it leaves attention flat for most of a short run, and
        # negation is not learned.
        initializer_range=0.08,
    )
