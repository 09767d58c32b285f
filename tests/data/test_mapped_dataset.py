"""Sentences in Arrow are the list that they were, and leave no file behind."""

import random
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sst2.data.mapped_dataset import BATCH, batches_of_sentences, labels_of, mapped_dataset, rows_of
from sst2.utils.errors import UserError
from tests.support.datasets import content_of, dataset_of
from tests.support.processes import results


def test_they_are_what_they_were_made_of() -> None:
    draw = random.Random(0)
    letters = "a \n\t\0é—字😀\u2028\ufeff"
    texts = ["".join(draw.choices(letters, k=draw.randrange(6))) for _ in range(2 * BATCH + 7)]
    labels = [draw.choice((-1, 0, 1)) for _ in texts]
    dataset = dataset_of(texts, labels)
    assert content_of(dataset) == (texts, labels)
    for data in (dataset, dataset.select(np.arange(0, len(texts), 2))):
        assert [text for batch in batches_of_sentences(data) for text in batch] == data["sentence"][:]
        assert labels_of(data).tolist() == data["label"][:]
        assert [*rows_of(data)] == [*zip(data["sentence"], data["label"], strict=True)]
    assert content_of(dataset_of([], [])) == ([], [])


def test_the_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left: set[Path] = set()  # while it is written, too: a kill leaves none behind

    def rows() -> Iterator[tuple[str, int]]:
        for row in range(100_000):
            left.update(tmp_path.iterdir() if row % 10_000 == 9_999 else ())
            yield "good", 1

    dataset = mapped_dataset(rows())
    assert [*left, *tmp_path.iterdir()] == []
    assert f"{tmp_path}/" in Path("/proc/self/maps").read_text()  # and yet it lies there
    assert len(dataset) == 100_000


def fill_a_disk(count: int) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))  # the kernel's way to make any disk a small one
    try:
        dataset_of(["good"] * count, [1] * count)
    except UserError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("count", [8_000, 1_000_000])  # found at the end, or in the middle
def test_want_of_room_is_one_line_that_names_the_folder(count: int) -> None:
    (message,) = results(fill_a_disk, count)
    assert message == (
        f"no temporary file can be written in {tempfile.gettempdir()} (File too large): make room, or name a folder "
        "that has some in the environment variable TMPDIR"
    )


def test_no_folder_at_all_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"no temporary file can be written in .*/gone \(No such file or directory\)"):
        dataset_of(["good"], [1])
