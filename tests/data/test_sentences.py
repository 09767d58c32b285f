"""Sentences in a file behave as the list that they were, and leave nothing behind."""

import random
import resource
import tempfile
from pathlib import Path

import numpy as np
import pytest

from sst2.data.sentences import Sentences, SentenceWriter
from sst2.utils.errors import UserError
from sst2.utils.scratch import BLOCK, MemoryMappedWriter, concat
from tests.support.processes import results


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Two blocks and a bit of all that Unicode has, empty texts among it."""
    draw = random.Random(0)
    letters = "a \n\t\0é—字😀\u2028\ufeff"
    return ["".join(draw.choices(letters, k=draw.randrange(6))) for _ in range(2 * BLOCK + 7)]


@pytest.fixture(scope="module")
def sentences(texts: list[str]) -> Sentences:
    return Sentences.of(iter(texts))


def test_they_are_the_list_that_they_were_made_of(texts: list[str], sentences: Sentences) -> None:
    assert len(sentences) == len(texts)
    assert list(sentences) == texts
    assert sentences == texts
    for row in (0, 1, BLOCK - 1, BLOCK, len(texts) - 1, -1, -len(texts), int(np.int64(5))):
        assert sentences[row] == texts[row]
    for row in (len(texts), -len(texts) - 1):
        with pytest.raises(IndexError):
            sentences[row]
    for part in (slice(32), slice(BLOCK - 3, BLOCK + 3), slice(-5, None), slice(5, 2), slice(9, 2, -3), slice(0, 0)):
        assert sentences[part] == texts[part]
    assert texts[7] in sentences
    assert "not there" not in sentences


def test_equality_is_of_all_sentences(texts: list[str], sentences: Sentences) -> None:
    assert sentences == Sentences.of(texts)
    for other in (texts[:-1], [*texts, ""], [*texts[:-1], "other"], []):
        assert sentences != other
        assert sentences != Sentences.of(other)
    assert Sentences.of(["a", "b"]) != Sentences.of(["ab", ""])
    assert Sentences.of([]) == []


def test_some_of_them_are_taken_in_the_order_asked_for(texts: list[str], sentences: Sentences) -> None:
    rows = np.random.default_rng(0).integers(len(texts), size=BLOCK + 11)  # several of them twice
    assert sentences.take(rows) == [texts[row] for row in rows]
    assert sentences.take(range(BLOCK + 3)) == texts[: BLOCK + 3]
    assert sentences.take(np.flatnonzero(np.zeros(3))) == []
    empty = Sentences.of([""] * 5)
    assert empty.take(range(2)) == ["", ""]
    assert list(empty) == [""] * 5


def test_arrays_are_read_only_and_keep_their_type() -> None:
    array = concat(iter([np.arange(3), np.array([], dtype=int), np.array([-(2**40)])]), "<i8")
    assert (array.tolist(), array.dtype) == ([0, 1, 2, -(2**40)], np.dtype(np.int64))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    assert (concat([], "<i8").tolist(), concat([], "<i8").dtype) == ([], np.dtype(np.int64))


def test_the_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    writer = SentenceWriter()
    for _ in range(100_000):
        writer.append("good")
    assert [*tmp_path.iterdir()] == []  # so that a kill leaves none behind, now or later
    sentences = writer.finish()
    assert [*tmp_path.iterdir()] == []
    assert f"{tmp_path}/" in Path("/proc/self/maps").read_text()  # and yet it lies there
    assert len(sentences) == 100_000


def fill_a_disk(count: int) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))  # the kernel's way to make any disk a small one
    try:
        Sentences.of("good" for _ in range(count))
    except UserError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("count", [100_000, 1_000_000])  # found at the end, or in the middle
def test_want_of_room_is_one_line_that_names_the_folder(count: int) -> None:
    (message,) = results(fill_a_disk, count)
    assert message == (
        f"no temporary file can be written in {tempfile.gettempdir()} (File too large): make room, or name a folder "
        "that has some in the environment variable TMPDIR"
    )


def test_no_folder_at_all_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"no temporary file can be written in .*/gone \(No such file or directory\)"):
        MemoryMappedWriter("<i8")
