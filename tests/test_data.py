"""Sentences reach the model exactly as the tokenizer gives them, once, whoever else tokenises at the same time."""

import hashlib
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from processes import results, start
from sst2.data import Split, load_sentences, tokenize
from sst2.errors import UserError
from sst2.reading import LabelledSentences
from sst2.sample import sample_sentences, sample_tokenizer
from sst2.settings import Settings

SENTENCES = ["a gripping , funny film ", "Naïve\tand   moving — xyzzy", "dull", "a dull film " * 20, "bad"]
LABELS = [1, 1, 0, 0, 0]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return sample_tokenizer()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "sst2")
    return caplog


def write_tsv(file: Path, rows: list[tuple[str, int]]) -> str:
    file.write_text("sentence\tlabel\n" + "".join(f"{sentence}\t{label}\n" for sentence, label in rows))
    return str(file)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """100 training sentences that are their own row numbers, and 20 for validation."""
    return Settings(
        output_dir=str(tmp_path / "run"),
        train_file=write_tsv(tmp_path / "train.tsv", [(f"t{row}", row % 2) for row in range(100)]),
        validation_file=write_tsv(tmp_path / "dev.tsv", [(f"v{row}", row % 2) for row in range(20)]),
    )


def arrow_files(folder: Path) -> dict[str, tuple[int, int]]:
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.glob("*.arrow")}


def assert_tokenizers_own(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    assert len(split.offsets) == len(split.sentences) + 1
    for row, sentence in enumerate(split.sentences):
        ids = split.input_ids[split.offsets[row] : split.offsets[row + 1]]
        assert ids.tolist() == tokenizer(sentence, truncation=True, max_length=max_length)["input_ids"], sentence


def test_ids_are_the_tokenizers_own_sentence_by_sentence(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    # More sentences than the libraries take at a time, so that parts have to be put together.
    sentences = SENTENCES + sample_sentences("train")[0][:2500]
    labels = LABELS + sample_sentences("train")[1][:2500]
    split = tokenize("train", LabelledSentences(sentences, labels), tokenizer, 12, tmp_path)
    assert_tokenizers_own(split, tokenizer, 12)
    assert split.lengths.max() == split.lengths[3] == 12  # the fourth was cut
    assert (split.name, split.sentences, split.labels.tolist()) == ("train", sentences, labels)
    assert (split.input_ids.dtype, split.offsets.dtype, split.labels.dtype) == (np.int32, np.int64, np.int64)


def test_sentences_are_tokenised_once_and_kept_in_the_datasets_cache(log: pytest.LogCaptureFixture) -> None:
    data = LabelledSentences([*SENTENCES, "only in this test"], [*LABELS, 1])
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "sst2-tokenized"
    before = arrow_files(folder)
    first = tokenize("validation", data, sample_tokenizer(), 16)
    written = arrow_files(folder)
    assert len(written) == len(before) + 1
    # The labels are no part of what is cached: the file serves again, the labels are those given.
    second = tokenize("test", replace(data, labels=[-1] * 6), sample_tokenizer(), 16)
    assert arrow_files(folder) == written
    assert np.array_equal(first.input_ids, second.input_ids)
    assert np.array_equal(first.offsets, second.offsets)
    assert (second.labels.tolist(), first.is_labelled, second.is_labelled) == ([-1] * 6, True, False)
    assert log.messages[0] == "validation: tokenising 6 sentences"
    assert log.messages[1].startswith("test: 6 sentences, tokenised earlier (")


def test_a_second_start_finds_every_split(tmp_path: Path) -> None:
    # Tokenising leaves its mark on the tokenizer; a start that finds the first split tokenised lacks that mark.
    splits = [LabelledSentences(SENTENCES, LABELS), LabelledSentences(["good", "better"], [1, 1])]
    written = []
    for _ in range(2):
        tokenizer = sample_tokenizer()
        for data in splits:
            tokenize("train", data, tokenizer, 8, tmp_path)
        written.append(arrow_files(tmp_path))
    assert len(written[0]) == 2
    assert written[1] == written[0]


@pytest.mark.parametrize(
    ("first", "second", "change"),
    [
        (["a b", "c"], ["a", "b c"], {}),
        (["a", "b"], ["b", "a"], {}),
        (["a\n\0b", "c"], ["a", "b", "c"], {}),
        (SENTENCES, SENTENCES, {"max_length": 9}),
        (SENTENCES, SENTENCES, {"token": "xyzzy"}),
    ],
    ids=["cut elsewhere", "other order", "control characters", "maximum length", "tokenizer"],
)
def test_another_tokenisation_is_another_file(
    first: list[str],
    second: list[str],
    change: dict[str, Any],
    tmp_path: Path,
) -> None:
    tokenize("train", LabelledSentences(first, [0] * len(first)), sample_tokenizer(), 8, tmp_path)
    max_length, other = change.get("max_length", 8), sample_tokenizer()
    other.add_tokens(change.get("token", []))
    split = tokenize("train", LabelledSentences(second, [0] * len(second)), other, max_length, tmp_path)
    assert_tokenizers_own(split, other, max_length)
    assert len(arrow_files(tmp_path)) == 2


def tokenise_in_process(cache_dir: Path) -> tuple[list[str], str, str]:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("sst2").addHandler(handler)
    logging.getLogger("sst2").setLevel(logging.INFO)
    split = tokenize("train", LabelledSentences(*sample_sentences("train")), sample_tokenizer(), 64, cache_dir)
    return messages, *(hashlib.sha256(array.tobytes()).hexdigest() for array in (split.input_ids, split.offsets))


def test_four_processes_at_once_tokenise_once(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    answers = results(tokenise_in_process, tmp_path, count=4)
    assert sorted(messages[0].split(" (")[0] for messages, *_ in answers) == [
        *(3 * ["train: 5400 sentences, tokenised earlier"]),
        "train: tokenising 5400 sentences",
    ]
    assert len(arrow_files(tmp_path)) == 1
    split = tokenize("train", LabelledSentences(*sample_sentences("train")), tokenizer, 64, tmp_path)
    assert_tokenizers_own(split, tokenizer, 64)
    expected = [hashlib.sha256(array.tobytes()).hexdigest() for array in (split.input_ids, split.offsets)]
    assert [list(hashes) for _, *hashes in answers] == 4 * [expected]


def test_a_killed_writer_leaves_nothing_that_is_taken_for_whole(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    process, _ = start(tokenise_in_process, tmp_path)
    deadline = time.monotonic() + 60
    while not any(file.stat().st_size for file in tmp_path.glob("*") if file.suffix != ".lock"):
        assert time.monotonic() < deadline
        assert process.is_alive()
    process.kill()
    process.join()
    assert arrow_files(tmp_path) == {}
    assert any(file.stat().st_size for file in tmp_path.iterdir())  # it was in the middle of it
    data = LabelledSentences(*sample_sentences("train"))
    assert_tokenizers_own(tokenize("train", data, tokenizer, 64, tmp_path), tokenizer, 64)


def test_validation_sentences_that_training_has_seen_are_told(
    settings: Settings, log: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    load_sentences(settings)
    assert log.messages == []
    write_tsv(tmp_path / "dev.tsv", [(" t5 ", 1), ("fresh", 0), ("t7", 1), ("T8", 1)])
    # The warning is about the sentences that are trained on: here t0 to t7.
    load_sentences(replace(settings, max_train_samples=8))
    assert len(log.messages) == 1
    assert "2 of 4 validation sentences stand in the training data as well, ' t5 ' for one" in log.messages[0]


def test_a_folder_written_by_save_to_disk_is_read(tmp_path: Path) -> None:
    def split(sentences: list[str], labels: list[int]) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"idx": range(len(labels)), "sentence": sentences, "label": labels})

    saved = {
        "train": split(["good", "bad", "fine"], [1, 0, 1]),
        "validation": split(["great"], [1]),
        "test": split(["a", "b"], [-1, -1]),
    }
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved")
    settings = Settings(output_dir=str(tmp_path / "run"), dataset_name=str(tmp_path / "saved"), max_eval_samples=1)
    assert load_sentences(settings) == {
        "train": LabelledSentences(["good", "bad", "fine"], [1, 0, 1]),
        "validation": LabelledSentences(["great"], [1]),
        "test": LabelledSentences(["a"], [-1]),
    }
    saved["train"].save_to_disk(tmp_path / "single")
    with pytest.raises(UserError, match=r"single has no split named train: save a DatasetDict"):
        load_sentences(replace(settings, dataset_name=str(tmp_path / "single")))
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"other was not written by save_to_disk"):
        load_sentences(replace(settings, dataset_name=str(tmp_path / "other")))


def test_a_holdout_is_cut_from_training_by_the_seed_and_leaves_validation_alone(settings: Settings) -> None:
    whole = load_sentences(settings)
    parts = {seed: load_sentences(replace(settings, holdout_fraction=0.2, seed=seed)) for seed in (1, 2)}
    for splits in parts.values():
        assert list(splits) == ["train", "holdout", "validation"]
        assert (len(splits["train"]), len(splits["holdout"])) == (80, 20)
        assert splits["validation"] == whole["validation"]
        # Disjoint and complete, each sentence with its label.
        together = splits["train"].sentences + splits["holdout"].sentences
        assert sorted(together) == sorted(whole["train"].sentences)
        for name in ("train", "holdout"):
            assert splits[name].labels == [int(sentence[1:]) % 2 for sentence in splits[name].sentences]
    assert load_sentences(replace(settings, holdout_fraction=0.2, seed=1)) == parts[1]
    assert set(parts[1]["holdout"].sentences) != set(parts[2]["holdout"].sentences)
    assert parts[1]["holdout"].sentences != whole["train"].sentences[:20]


def test_samples_are_the_first_and_the_holdout_is_cut_from_them(settings: Settings) -> None:
    splits = load_sentences(replace(settings, max_train_samples=10, max_eval_samples=3))
    assert splits["train"].sentences == [f"t{row}" for row in range(10)]
    assert splits["validation"].sentences == ["v0", "v1", "v2"]
    splits = load_sentences(replace(settings, max_train_samples=10, max_eval_samples=3, holdout_fraction=0.5))
    assert len(splits["train"]) == 5  # evaluations being cut short does not give sentences back to training
    assert len(splits["holdout"]) == 3
    assert not set(splits["train"].sentences) & set(splits["holdout"].sentences)
    assert {*splits["train"].sentences, *splits["holdout"].sentences} < {f"t{row}" for row in range(10)}
    assert len(load_sentences(replace(settings, max_train_samples=1000))["train"]) == 100
