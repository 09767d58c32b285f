"""The embedded sample is the same everywhere, and honest: nothing of validation is in training."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from sst2.data.sample import WORDS, Split, alternatives, sample_sentences, sample_tokenizer

SPLITS: tuple[Split, Split] = ("train", "validation")

FINGERPRINT = """
import hashlib, json
from sst2.data.sample import sample_sentences, sample_tokenizer
content = [sample_sentences("train"), sample_sentences("validation"), sample_tokenizer().get_vocab()]
print(hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest())
"""


def test_sizes_balance_and_no_sentence_twice() -> None:
    (train, train_labels), (validation, validation_labels) = (sample_sentences(split) for split in SPLITS)
    assert (len(train), len(validation)) == (len(train_labels), len(validation_labels)) == (5400, 600)
    assert len({*train, *validation}) == 6000
    for labels in (train_labels, validation_labels):
        assert set(labels) == {0, 1}
        assert sum(labels) / len(labels) == pytest.approx(0.5, abs=0.05)
    for sentence in train + validation:
        assert "<" not in sentence  # the grammar is expanded to the end
        assert len(sentence.split()) <= 40


def test_labels_follow_the_grammar_and_not_the_words() -> None:
    labels: dict[str, int] = {}
    for split in SPLITS:
        labels |= dict(zip(*sample_sentences(split), strict=True))
    for words, label in ((alternatives(WORDS["plain+"]), 1), (alternatives(WORDS["plain-"]), 0)):
        plain = {word: labels[word] for word in words if word in labels}
        negated = {word: labels[f"never {word}"] for word in words if f"never {word}" in labels}
        assert len(plain) > 5
        assert len(negated) > 5
        assert set(plain.values()) == {label}
        assert set(negated.values()) == {1 - label}


def test_validation_has_words_that_training_never_sees() -> None:
    seen, unseen = (set(" ".join(sample_sentences(split)[0]).split()) for split in SPLITS)
    assert {"riveting", "insipid", "sisters", "castle"} <= unseen - seen


def test_the_vocabulary_knows_every_letter() -> None:
    tokenizer = sample_tokenizer()
    assert sorted(tokenizer.get_vocab().values()) == list(range(600))
    sentences = sample_sentences("train")[0] + sample_sentences("validation")[0]
    for sentence, ids in zip(sentences, tokenizer(sentences)["input_ids"], strict=True):
        assert tokenizer.unk_token_id not in ids, sentence
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert "token_type_ids" not in tokenizer("good")


def test_every_process_makes_the_same_sentences_and_vocabulary() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FINGERPRINT],
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "4711")
    ]
    prints = [process.communicate()[0] for process in processes]
    assert len(set(prints)) == 1
    assert len(prints[0].strip()) == 64


def test_the_sentences_are_those_that_published_numbers_come_from() -> None:
    prints = [hashlib.sha256(json.dumps(sample_sentences(split)).encode()).hexdigest()[:16] for split in SPLITS]
    assert prints == ["e664555a394e129f", "b0c654f1ec1e0a5e"]
