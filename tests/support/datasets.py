"""Sentences and labels as the package passes them on, made of lists."""

from collections.abc import Sequence

from datasets import Dataset

from sst2.data.mapped_dataset import mapped_dataset


def dataset_of(sentences: Sequence[str], labels: Sequence[int]) -> Dataset:
    """Sentences with their labels."""
    return mapped_dataset(zip(sentences, labels, strict=True))


def content_of(dataset: Dataset) -> tuple[list[str], list[int]]:
    """Sentences and labels, to be compared."""
    return dataset["sentence"][:], dataset["label"][:]
