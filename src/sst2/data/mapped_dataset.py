"""Sentences and labels in Arrow, read by pages: they are no part of the process's own memory, however many they are."""

import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from sst2.utils.errors import no_room

if TYPE_CHECKING:
    from datasets import Dataset

BATCH = 10_000  # rows that pass through memory at a time: few beside a library, enough to be fast


def mapped_dataset(rows: Iterable[tuple[str, int]]) -> "Dataset":
    """A dataset with the columns `sentence` and `label`, mapped from a temporary file.

    The file has lost its name when this returns, and is gone with the dataset, however the process ends.

    Args:
        rows: sentences and labels.

    Raises:
        LocalError: no folder for temporary files can be written, or its disk is full.
    """
    import pyarrow  # half a second, with the next, that a prediction does not wait for
    from datasets import Dataset

    schema = pyarrow.schema({"sentence": pyarrow.string(), "label": pyarrow.int8()})
    rows = iter(rows)
    try:
        with tempfile.NamedTemporaryFile(suffix=".arrow") as file:
            with pyarrow.ipc.new_stream(file, schema) as writer:
                while batch := list(islice(rows, BATCH)):
                    sentences, labels = zip(*batch, strict=True)
                    writer.write_batch(pyarrow.record_batch([pyarrow.array(sentences), labels], schema=schema))
            file.flush()
            return Dataset.from_file(file.name)
    except OSError as error:
        raise no_room(error) from None


def batches_of_sentences(dataset: "Dataset") -> Iterator[list[str]]:
    """All sentences, some at a time: many times as fast as one by one."""
    return (batch["sentence"] for batch in dataset.iter(BATCH))


def labels_of(dataset: "Dataset") -> np.ndarray:
    """(sentences,) int8; 0 negative, 1 positive, -1 unknown."""
    labels: np.ndarray = dataset.with_format("arrow")["label"][:].to_numpy()
    return labels


def with_labels(dataset: "Dataset", labels: np.ndarray) -> "Dataset":
    """The sentences, which stay where they are, with these labels: (sentences,) int8."""
    return dataset.select_columns(["sentence"]).add_column("label", labels)
