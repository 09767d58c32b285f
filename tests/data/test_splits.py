"""Which sentences make which split, and what a split says of itself."""

import hashlib
import logging
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest

from sst2.config.settings import Settings
from sst2.data.sample import sample_sentences, sample_tokenizer
from sst2.data.splits import Split, load_sentences, tokenize
from sst2.utils.errors import UserError
from tests.support.datasets import content_of, dataset_of
from tests.support.processes import results


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


def test_training_sentences_of_one_class_are_told(
    settings: Settings, log: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    one = write_tsv(tmp_path / "one.tsv", [("fine", 1), ("nice", 1)])
    load_sentences(replace(settings, train_file=one))
    assert log.messages == ["all 2 training sentences are POSITIVE: nothing can be learned of the other class"]


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
    assert {name: content_of(data) for name, data in load_sentences(settings).items()} == {
        "train": (["good", "bad", "fine"], [1, 0, 1]),
        "validation": (["great"], [1]),
        "test": (["a"], [-1]),
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
        assert content_of(splits["validation"]) == content_of(whole["validation"])
        # Disjoint and complete, each sentence with its label.
        together = [*splits["train"]["sentence"][:], *splits["holdout"]["sentence"][:]]
        assert sorted(together) == sorted(whole["train"]["sentence"][:])
        for name in ("train", "holdout"):
            assert splits[name]["label"][:] == [int(sentence[1:]) % 2 for sentence in splits[name]["sentence"][:]]
    again = load_sentences(replace(settings, holdout_fraction=0.2, seed=1))
    assert {name: content_of(data) for name, data in again.items()} == {n: content_of(d) for n, d in parts[1].items()}
    assert set(parts[1]["holdout"]["sentence"][:]) != set(parts[2]["holdout"]["sentence"][:])
    assert parts[1]["holdout"]["sentence"][:] != whole["train"]["sentence"][:20]


def test_samples_are_the_first_and_the_holdout_is_cut_from_them(settings: Settings) -> None:
    splits = load_sentences(replace(settings, max_train_samples=10, max_eval_samples=3))
    assert splits["train"]["sentence"][:] == [f"t{row}" for row in range(10)]
    assert splits["validation"]["sentence"][:] == ["v0", "v1", "v2"]
    splits = load_sentences(replace(settings, max_train_samples=10, max_eval_samples=3, holdout_fraction=0.5))
    assert len(splits["train"]) == 5  # evaluations being cut short does not give sentences back to training
    assert len(splits["holdout"]) == 3
    assert not set(splits["train"]["sentence"][:]) & set(splits["holdout"]["sentence"][:])
    assert {*splits["train"]["sentence"][:], *splits["holdout"]["sentence"][:]} < {f"t{row}" for row in range(10)}
    assert len(load_sentences(replace(settings, max_train_samples=1000))["train"]) == 100


def reference_holdout(sentences: list[str], size: int, seed: int) -> list[int]:
    """Rows of the hold-out, drawn with dictionaries and lists of texts."""
    rows_of: dict[str, list[int]] = {}
    for row, sentence in enumerate(sentences):
        rows_of.setdefault(sentence.strip(), []).append(row)
    texts = list(rows_of)
    held: list[int] = []
    for number in np.random.default_rng([seed, 2**32]).permutation(len(texts)):
        if len(held) < size:
            held += rows_of[texts[number]]
    return sorted(held)


@pytest.mark.parametrize(("fraction", "seed"), [(0.1, 42), (0.1, 0), (0.5, 7), (0.999, 3), (0.0004, 42)])
def test_the_holdout_is_drawn_by_whole_texts_in_the_order_of_their_first_appearance(
    fraction: float, seed: int, tmp_path: Path
) -> None:
    # The draw is part of what committed results stand for. Most texts come several times, some with blanks around.
    draw = random.Random(0)
    sentences = [f"{draw.choice(('', ' '))}é{int(draw.paretovariate(0.3)) % 1000}" for _ in range(2500)]
    settings = Settings(
        output_dir=str(tmp_path / "run"),
        train_file=write_tsv(tmp_path / "train.tsv", [(sentence, row % 2) for row, sentence in enumerate(sentences)]),
        validation_file=write_tsv(tmp_path / "dev.tsv", [("v", 1)]),
        holdout_fraction=fraction,
        seed=seed,
    )
    expected = reference_holdout(sentences, round(2500 * fraction), seed)
    splits = load_sentences(settings)
    assert list(splits["holdout"]["sentence"][:]) == [sentences[row] for row in expected]
    assert splits["holdout"]["label"][:] == [row % 2 for row in expected]
    assert len(splits["train"]) == 2500 - len(expected)
    assert not {s.strip() for s in splits["holdout"]["sentence"][:]} & {
        s.strip() for s in splits["train"]["sentence"][:]
    }


def test_copies_of_one_sentence_cannot_be_divided(settings: Settings, tmp_path: Path) -> None:
    write_tsv(tmp_path / "train.tsv", [("the same", row % 2) for row in range(10)])
    with pytest.raises(UserError, match=r"--holdout_fraction 0\.5 of 10 training sentences leaves a part empty"):
        load_sentences(replace(settings, holdout_fraction=0.5))


def test_the_fingerprint_is_of_all_numbers_and_stays_what_it_was() -> None:
    arrays: dict[str, Any] = {
        "labels": np.array([1, 0, -1], dtype=np.int8),
        "input_ids": np.array([2, 7, 3, 2, 3, 2, 9, 9, 3], dtype=np.int32),
        "offsets": np.array([0, 3, 5, 9], dtype=np.int64),
    }
    split = Split("train", ["a", "b", "c"], **arrays)
    # checkpoints keep it: with another value none could be resumed
    assert split.fingerprint == "d47fd23cb4fdf8288ee157f09542840a2a58493ffe867a062ce181388a0acb16"
    assert split.lengths().tolist() == [3, 2, 4]
    for name, array in arrays.items():
        changed = array.copy()
        changed[1] += 1
        assert replace(split, **{name: changed}).fingerprint != split.fingerprint


def test_a_large_splits_fingerprint_is_its_arrays_digest(tmp_path: Path) -> None:
    sentences, labels = sample_sentences("train")
    split = tokenize("train", dataset_of(sentences, labels), sample_tokenizer(), 64, tmp_path)
    whole = split.input_ids.tobytes() + split.offsets.tobytes() + np.array(labels, dtype=np.int64).tobytes()
    assert split.fingerprint == hashlib.sha256(whole).hexdigest()


def own_memory(settings: Settings) -> tuple[int, float]:
    """Sentences, and MiB of anonymous memory that loading and tokenizing them adds to a process."""

    def anonymous() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) / 2**10

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # Arrow's own keeps megabytes for later, now more, now less
    tokenizer = sample_tokenizer()
    tokenize("train", dataset_of(["good"], [1]), tokenizer, 64, settings.run_dir)  # starts threads
    before = anonymous()
    data = load_sentences(settings)["train"]
    split = tokenize("train", data, tokenizer, 64, settings.run_dir)
    assert split.fingerprint != ""
    assert split.lengths().min() > 0
    return len(split), anonymous() - before


def test_memory_does_not_grow_with_the_data(settings: Settings, tmp_path: Path) -> None:
    added = {}
    # Fewer than the 16 would not do: the library's threads and the allocator take more until some batches have passed.
    for copies in (16, 48):
        rows = [(f"{sentence} {copy}", copy % 2) for sentence in sample_sentences("train")[0] for copy in range(copies)]
        write_tsv(tmp_path / "train.tsv", rows)
        (answer,) = results(own_memory, settings)
        added[answer[0]] = answer[1]
    few, many = sorted(added)
    assert many - few == 32 * 5400
    # A list of the sentences would add 17 MiB, measured.
    assert added[many] - added[few] < 8
