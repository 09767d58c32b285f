"""Token ids are the tokenizer's own, written once, and whole or made anew, whoever else tokenizes or is killed."""

import errno
import fcntl
import hashlib
import logging
import os
import pty
import resource
import select
import shutil
import signal
import struct
import termios
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from sst2.config.arguments import parse_arguments
from sst2.data.mapped_dataset import BATCH
from sst2.data.sample import sample_sentences, sample_tokenizer
from sst2.data.splits import Split, load_sentences, tokenize, tokenize_all
from sst2.models.loading import load_tokenizer
from sst2.utils.errors import StopRequestedError, UserError
from tests.support.datasets import dataset_of
from tests.support.jobs import running
from tests.support.processes import kill_at_change, results, start

SENTENCES = ["a gripping , funny film ", "Naïve\tand   moving — xyzzy", "dull", "a dull film " * 20, "bad"]
LABELS = [1, 1, 0, 0, 0]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return sample_tokenizer()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "sst2")
    return caplog


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return sample_sentences("train")[0]


def folders(cache_dir: Path) -> dict[str, tuple[int, int]]:
    """The cached token ids, and what changes when they are written anew."""
    found = cache_dir.glob("*.tokens")
    return {folder.name: (folder.stat().st_ino, folder.stat().st_mtime_ns) for folder in found}


def unlabeled(sentences: list[str]) -> datasets.Dataset:
    return dataset_of(sentences, [-1] * len(sentences))


def assert_tokenizers_own(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    assert len(split.offsets) == len(split.sentences) + 1
    for row, sentence in enumerate(split.sentences):
        ids = split.input_ids[split.offsets[row] : split.offsets[row + 1]]
        assert ids.tolist() == tokenizer(sentence, truncation=True, max_length=max_length)["input_ids"], sentence


def test_ids_are_the_tokenizers_own_sentence_by_sentence(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    sentences = [*SENTENCES, "[CLS] [MASK] a [SEP] [UNK]", "字\0\u200b—é", *sample_sentences("train")[0][:2000]]
    split = tokenize("train", dataset_of(sentences, [1] * len(sentences)), tokenizer, 12, tmp_path)
    assert_tokenizers_own(split, tokenizer, 12)
    assert split.lengths().max() == split.lengths(np.array(3)) == 12  # the fourth was cut
    assert (split.name, split.sentences[:], split.labels.tolist()) == ("train", sentences, [1] * len(sentences))
    assert (split.input_ids.dtype, split.offsets.dtype, split.labels.dtype) == (
        np.dtype(np.int32),
        np.dtype(np.int64),
        np.dtype(np.int16),
    )


def test_parts_are_put_together(tokenizer: PreTrainedTokenizerBase, sentences: list[str], tmp_path: Path) -> None:
    many = (SENTENCES + sentences) * 4
    assert len(many) > 2 * BATCH
    split = tokenize("train", unlabeled(many), tokenizer, 12, tmp_path)
    expected = tokenizer(many, truncation=True, max_length=12)["input_ids"]
    assert split.lengths().tolist() == [*map(len, expected)]
    assert split.input_ids.tolist() == [number for ids in expected for number in ids]


def test_truncation_follows_the_tokenizers_side(tmp_path: Path) -> None:
    tokenizer = sample_tokenizer()
    tokenizer.truncation_side = "left"
    assert_tokenizers_own(tokenize("train", unlabeled(SENTENCES), tokenizer, 6, tmp_path), tokenizer, 6)


def test_what_earlier_calls_leave_in_the_tokenizer_does_not_count(tmp_path: Path) -> None:
    tokenizer = sample_tokenizer()
    plain = tokenize("train", unlabeled(SENTENCES), tokenizer, 16, tmp_path)
    tokenizer(SENTENCES, padding="max_length", max_length=30, truncation=True)
    again = tokenize("train", unlabeled(SENTENCES), tokenizer, 16, tmp_path)
    assert len(folders(tmp_path)) == 1
    assert again.input_ids.tolist() == plain.input_ids.tolist()
    assert len(tokenizer("good", padding="max_length", max_length=30)["input_ids"]) == 30  # nor is it touched


def test_sentences_are_tokenized_once_and_kept_in_the_datasets_cache(log: pytest.LogCaptureFixture) -> None:
    data = dataset_of([*SENTENCES, "only in this test"], [*LABELS, 1])
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "sst2-tokenized"
    before = folders(cache)
    first = tokenize("validation", data, sample_tokenizer(), 16)
    written = folders(cache)
    assert len(written) == len(before) + 1
    # The labels are no part of what is cached: the files serve again, the labels are those given.
    second = tokenize("test", unlabeled(data["sentence"][:]), sample_tokenizer(), 16)
    assert folders(cache) == written
    assert np.array_equal(first.input_ids, second.input_ids)
    assert np.array_equal(first.offsets, second.offsets)
    assert (second.labels.tolist(), first.is_labeled, second.is_labeled) == ([-1] * 6, True, False)
    assert log.messages[0] == "validation: tokenizing 6 sentences"
    assert log.messages[1].startswith("test: 6 sentences, tokenized earlier (")


def test_a_second_start_finds_every_split(tmp_path: Path) -> None:
    splits = [unlabeled(SENTENCES), unlabeled(["good", "better"])]
    written = []
    for _ in range(2):
        tokenizer = sample_tokenizer()
        for data in splits:
            tokenize("train", data, tokenizer, 8, tmp_path)
        written.append(folders(tmp_path))
    assert len(written[0]) == 2
    assert written[1] == written[0]


@pytest.mark.parametrize(
    ("first", "second", "change"),
    [
        (["a b", "c"], ["a", "b c"], {}),
        (["ab", "c"], ["a", "bc"], {}),
        (["a", "b"], ["b", "a"], {}),
        (["a\n\0b", "c"], ["a", "b", "c"], {}),
        (SENTENCES, SENTENCES, {"max_length": 9}),
        (SENTENCES, SENTENCES, {"token": "xyzzy"}),
    ],
    ids=["cut elsewhere", "cut within a word", "other order", "control characters", "maximum length", "tokenizer"],
)
def test_another_tokenization_is_another_folder(
    first: list[str],
    second: list[str],
    change: dict[str, Any],
    tmp_path: Path,
) -> None:
    tokenize("train", unlabeled(first), sample_tokenizer(), 8, tmp_path)
    max_length, other = change.get("max_length", 8), sample_tokenizer()
    other.add_tokens(change.get("token", []))
    split = tokenize("train", unlabeled(second), other, max_length, tmp_path)
    assert_tokenizers_own(split, other, max_length)
    assert len(folders(tmp_path)) == 2


def tokenize_in_process(
    cache_dir: Path, tokenizer: PreTrainedTokenizerBase, sentences: list[str]
) -> tuple[list[str], str, str]:
    """What was said, and the digests of ids and offsets."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("sst2").handlers = [handler]
    logging.getLogger("sst2").setLevel(logging.INFO)
    split = tokenize("train", unlabeled(sentences), tokenizer, 64, cache_dir)
    ids, offsets = (hashlib.sha256(array.tobytes()).hexdigest() for array in (split.input_ids, split.offsets))
    return messages, ids, offsets


def test_four_processes_at_once_tokenize_once(
    tokenizer: PreTrainedTokenizerBase, sentences: list[str], tmp_path: Path
) -> None:
    answers = results(tokenize_in_process, tmp_path, tokenizer, sentences, count=4)
    assert sorted(messages[-1].split(" (")[0] for messages, *_ in answers) == [
        *(3 * ["train: 5400 sentences, tokenized earlier"]),
        "train: tokenizing 5400 sentences",
    ]
    assert len(folders(tmp_path)) == 1
    split = tokenize("train", unlabeled(sentences), tokenizer, 64, tmp_path)
    assert_tokenizers_own(split, tokenizer, 64)
    expected = [hashlib.sha256(array.tobytes()).hexdigest() for array in (split.input_ids, split.offsets)]
    assert [list(hashes) for _, *hashes in answers] == 4 * [expected]


def test_ids_at_hand_are_read_without_the_lock(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """A thousand processes do not queue, and a cache that nobody may write to serves."""
    tokenize_in_process(tmp_path, tokenizer, SENTENCES)
    (folder,) = tmp_path.glob("*.tokens")
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process, receiver = start(tokenize_in_process, tmp_path, tokenizer, SENTENCES)
        assert receiver.poll(60)
        assert receiver.recv()[0][0].startswith("train: 5 sentences, tokenized earlier")
        process.join()


def tokenize_without_locks(
    cache_dir: Path, tokenizer: PreTrainedTokenizerBase, sentences: list[str]
) -> tuple[list[str], str, str]:
    """On a file system that has none."""

    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    fcntl.flock = flock
    return tokenize_in_process(cache_dir, tokenizer, sentences)


def test_without_locks_each_process_tokenizes_and_one_result_stays(
    tokenizer: PreTrainedTokenizerBase, sentences: list[str], tmp_path: Path
) -> None:
    expected = tokenize_in_process(tmp_path / "undisturbed", tokenizer, sentences)[1:]
    answers = results(tokenize_without_locks, tmp_path / "cache", tokenizer, sentences, count=3)
    for messages, *hashes in answers:
        assert tuple(hashes) == expected
        assert sum("has no locks" in message for message in messages) <= 1
    assert len(folders(tmp_path / "cache")) == 1
    assert unfinished(tmp_path / "cache") == []
    (folder,) = (tmp_path / "cache").glob("*.tokens")
    flip_a_byte(folder / "input_ids.int32")  # what is damaged is replaced as well
    (answer,) = results(tokenize_without_locks, tmp_path / "cache", tokenizer, sentences)
    assert tuple(answer[1:]) == expected


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_whoever_waits_for_another_process_says_so_and_can_be_stopped(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    tokenize("train", unlabeled(SENTENCES), tokenizer, 16, tmp_path)
    (folder,) = tmp_path.glob("*.tokens")
    shutil.rmtree(folder)

    def stop() -> None:
        raise StopRequestedError("stopped by SIGTERM")

    log.clear()
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StopRequestedError):
            tokenize("train", unlabeled(SENTENCES), tokenizer, 16, tmp_path, check_stop=stop)
    assert log.messages == [f"waiting for another process that tokenizes the train split (it holds {folder}.lock)"]
    with pytest.raises(StopRequestedError):  # as well while it tokenizes itself
        tokenize("train", unlabeled(SENTENCES), tokenizer, 16, tmp_path, check_stop=stop)
    assert folders(tmp_path) == {}
    assert unfinished(tmp_path) == []


@pytest.mark.slow
def test_a_job_that_waits_for_another_ones_tokens_heeds_sigterm(
    small_job: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache" / "sst2-tokenized"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache.parent)
    settings = parse_arguments([*map(str, small_job), "--output_dir", str(tmp_path / "run")])
    tokenize_all(load_sentences(settings), load_tokenizer(settings), settings)
    for folder in cache.glob("*.tokens"):
        shutil.rmtree(folder)
    with ExitStack() as held:
        for file in cache.glob("*.lock"):
            fcntl.flock(held.enter_context(file.open("w")), fcntl.LOCK_EX)
        with running(small_job, tmp_path / "run", HF_DATASETS_CACHE=str(cache.parent)) as job:
            job.wait_for(lambda: "waiting for another process that tokenizes the train split" in job.said)
            job.process.terminate()
            finished = job.wait(30)
    assert finished.code == 75
    assert "stopped by SIGTERM before training began; nothing is lost" in finished.stderr
    assert not (tmp_path / "run").exists()


def unfinished(cache_dir: Path) -> list[Path]:
    return [path for path in cache_dir.iterdir() if path.suffix not in (".lock", ".tokens")]


def test_a_writer_killed_in_the_middle_leaves_nothing_that_is_taken_for_whole(
    tokenizer: PreTrainedTokenizerBase, sentences: list[str], tmp_path: Path
) -> None:
    many, cache = sentences * 20, tmp_path / "cache"
    expected = tokenize_in_process(tmp_path / "undisturbed", tokenizer, many)[1:]
    process, _ = start(tokenize_in_process, cache, tokenizer, many)
    deadline = time.monotonic() + 60
    while not any(file.stat().st_size for file in cache.rglob("input_ids.int32")):
        assert time.monotonic() < deadline
        assert process.is_alive()
    process.kill()
    process.join()
    assert folders(cache) == {}
    (left,) = cache.rglob("input_ids.int32")  # it was in the middle of it
    assert left.stat().st_size < next((tmp_path / "undisturbed").rglob(left.name)).stat().st_size
    messages, *hashes = tokenize_in_process(cache, tokenizer, many)
    assert messages == ["train: tokenizing 108000 sentences"]
    assert tuple(hashes) == expected
    assert unfinished(cache) == []


def killed_while_tokenizing(cache_dir: Path, tokenizer: PreTrainedTokenizerBase, killed_at: int) -> bool:
    kill_at_change(killed_at)
    tokenize_in_process(cache_dir, tokenizer, SENTENCES)
    return True


@pytest.mark.fault
@pytest.mark.parametrize("is_damaged", [False, True], ids=["nothing there", "something damaged there"])
def test_a_kill_before_any_change_of_the_file_system_costs_one_tokenization(
    is_damaged: bool, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    expected = tokenize_in_process(tmp_path / "undisturbed", tokenizer, SENTENCES)[1:]
    for killed_at in count(1):
        cache = tmp_path / str(killed_at)
        if is_damaged:
            tokenize_in_process(cache, tokenizer, SENTENCES)
            flip(next(cache.glob("*.tokens/input_ids.int32")))
        process, _ = start(killed_while_tokenizing, cache, tokenizer, killed_at)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        assert tokenize_in_process(cache, tokenizer, SENTENCES)[1:] == expected
        (said,) = tokenize_in_process(cache, tokenizer, SENTENCES)[0]
        assert said.startswith("train: 5 sentences, tokenized earlier")
        assert len(folders(cache)) == 1
    assert killed_at > 8  # temporary files, lock, folder, three files, rename


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "flipped bit": ("input_ids.int32", flip, "input_ids.int32 has another SHA-256 than manifest.json says"),
    "flipped offset": ("offsets.int64", flip, "offsets.int64 has another SHA-256 than manifest.json says"),
    "cut short": ("input_ids.int32", lambda file: os.truncate(file, 10), "input_ids.int32 has 10 bytes instead of "),
    "emptied": ("offsets.int64", lambda file: os.truncate(file, 0), "offsets.int64 has 0 bytes instead of "),
    "file gone": ("offsets.int64", Path.unlink, "offsets.int64 cannot be read: No such file"),
    "manifest gone": ("manifest.json", Path.unlink, "manifest.json is missing"),
}


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES.values(), ids=list(DAMAGES))
def test_damage_is_told_once_and_costs_one_tokenization(
    name: str,
    damage: Callable[[Path], object],
    message: str,
    tokenizer: PreTrainedTokenizerBase,
    log: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    data = unlabeled(SENTENCES)
    tokenize("train", data, tokenizer, 16, tmp_path)
    (folder,) = tmp_path.glob("*.tokens")
    damage(folder / name)
    log.clear()
    assert_tokenizers_own(tokenize("train", data, tokenizer, 16, tmp_path), tokenizer, 16)
    (warning,) = (record.getMessage() for record in log.records if record.levelno >= logging.WARNING)
    assert warning.startswith(f"train: tokenizing anew, {folder} is damaged: {message}")
    log.clear()
    assert_tokenizers_own(tokenize("train", data, tokenizer, 16, tmp_path), tokenizer, 16)
    (said,) = log.messages
    assert said.startswith("train: 5 sentences, tokenized earlier (")


def test_of_processes_that_find_damage_at_once_one_tells_and_mends_it(
    tokenizer: PreTrainedTokenizerBase, sentences: list[str], tmp_path: Path
) -> None:
    expected = tokenize_in_process(tmp_path, tokenizer, sentences)[1:]
    flip(next(tmp_path.glob("*.tokens/input_ids.int32")))
    answers = results(tokenize_in_process, tmp_path, tokenizer, sentences, count=4)
    assert [answer[1:] for answer in answers] == 4 * [expected]
    said = [message for messages, *_ in answers for message in messages]
    assert sum("damaged" in message for message in said) == 1
    assert sum("tokenized earlier" in message for message in said) == 3


def tokenize_on_a_small_disk(cache_dir: Path, tokenizer: PreTrainedTokenizerBase, sentences: list[str]) -> str:
    data = unlabeled(sentences)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))  # the kernel's way to make any disk a small one
    try:
        tokenize("train", data, tokenizer, 64, cache_dir)
    except UserError as error:
        return str(error)
    return "no error"


def test_want_of_room_is_one_line_that_names_the_folder_and_leaves_nothing(
    tokenizer: PreTrainedTokenizerBase, sentences: list[str], tmp_path: Path
) -> None:
    assert results(tokenize_on_a_small_disk, tmp_path, tokenizer, sentences) == [
        f"token ids cannot be written to {tmp_path} (File too large): make room, or name a folder that has some in "
        "the environment variable HF_DATASETS_CACHE"
    ]
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert tokenize_in_process(tmp_path, tokenizer, sentences)[0] == ["train: tokenizing 5400 sentences"]


def test_a_folder_that_cannot_be_made_is_one_line(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"token ids cannot be written to .*/file/x \(Not a directory\): "):
        tokenize("train", unlabeled(SENTENCES), tokenizer, 8, tmp_path / "file" / "x")


def maps() -> str:
    return Path("/proc/self/maps").read_text()


def test_ids_are_pages_of_their_file_or_of_its_copy_on_the_node(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    data = unlabeled(["of this test alone", *SENTENCES])
    cache, node = tmp_path / "cache", tmp_path / "node"
    here = tokenize("train", data, tokenizer, 16, cache)
    assert f"{next(cache.glob('*.tokens'))}/input_ids.int32" in maps()
    with pytest.raises(ValueError, match="read-only"):
        here.input_ids[0] = 1
    there = tokenize("train", data, tokenizer, 16, cache, str(node))
    assert any(f"{node}/" in line and line.endswith(".tokens/input_ids.int32") for line in maps().splitlines())
    assert there.fingerprint == here.fingerprint
    assert_tokenizers_own(there, tokenizer, 16)


def tokenize_on_a_terminal(
    cache_dir: Path, tokenizer: PreTrainedTokenizerBase, sentences: list[str], terminal: str
) -> None:
    os.dup2(os.open(terminal, os.O_RDWR | os.O_NOCTTY), 2)
    tokenize_in_process(cache_dir, tokenizer, sentences)


def test_a_terminal_shows_progress_and_a_file_does_not(
    tokenizer: PreTrainedTokenizerBase, sentences: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenize_in_process(tmp_path / "file", tokenizer, sentences)
    assert "tokenizing:" not in "".join(capfd.readouterr())
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # lines and columns
    arguments = (tmp_path / "terminal", tokenizer, sentences * 2, os.ttyname(terminal))
    process, _ = start(tokenize_on_a_terminal, *arguments)
    process.join()  # the terminal holds what little it has shown
    assert select.select([controller], [], [], 10)[0]
    shown = os.read(controller, 1 << 16)
    assert b"tokenizing: 100%" in shown
    assert b"10.8k/10.8k" in shown
