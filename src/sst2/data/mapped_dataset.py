"""Sentences and labels in Arrow, read by pages: they are no part of the process's own memory, however many they are."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from sst2.config.flag_groups import LABEL_NAMES
from sst2.utils.errors import no_room

if TYPE_CHECKING:
    from datasets import Dataset

BATCH = 10_000  # rows that pass through memory at a time: few beside a library, enough to be fast


def mapped_dataset(rows: Iterable[tuple[str, int]], label_names: Sequence[str] = LABEL_NAMES) -> "Dataset":
    """A dataset with the columns `sentence` and `label`, a `ClassLabel` of these names, mapped from a temporary file.

    The file never has a name, and is gone with the dataset, however the process ends. Nor can the dataset be pickled.

    Raises:
        LocalError: no folder for temporary files can be written, or its disk is full.
    """
    import pyarrow  # half a second, with the next, that a prediction does not wait for
    from datasets import ClassLabel, Dataset, Features, Value

    schema = Features({"sentence": Value("string"), "label": ClassLabel(names=list(label_names))}).arrow_schema
    rows = iter(rows)
    try:
        with tempfile.TemporaryFile() as file:
            with pyarrow.ipc.new_stream(file, schema) as writer:
                while batch := list(islice(rows, BATCH)):
                    sentences, labels = zip(*batch, strict=True)
                    writer.write_batch(pyarrow.record_batch([pyarrow.array(sentences), labels], schema=schema))
            file.flush()
            return Dataset.from_file(f"/dev/fd/{file.fileno()}")
    except OSError as error:
        raise no_room(error) from None


def batches_of_sentences(dataset: "Dataset") -> Iterator[list[str]]:
    """All sentences, some at a time: many times as fast as one by one."""
    return (batch["sentence"] for batch in dataset.iter(BATCH))


def rows_of(dataset: "Dataset") -> Iterator[tuple[str, int]]:
    """All sentences with their labels, one by one, and read some at a time."""
    return (row for batch in dataset.iter(BATCH) for row in zip(batch["sentence"], batch["label"], strict=True))


def labels_of(dataset: "Dataset") -> np.ndarray:
    """(sentences,) int16, numbers of classes; -1 unknown."""
    labels: np.ndarray = dataset.with_format("arrow")["label"][:].cast("int16").to_numpy()
    return labels


def class_names_of(dataset: "Dataset") -> list[str]:
    """What the labels 0, 1 and so on stand for."""
    names: list[str] = dataset.features["label"].names
    return names
