"""Sentences of five classes that are named by words, one of them fifty times as frequent as another."""

import csv
from collections.abc import Mapping
from pathlib import Path
from random import Random

from benchmarks.class_weights import WORDS

FILLERS = "the a of in with and about for new old big last next very quite some"
TRAIN = {"sport": 200, "politics": 100, "science": 60, "business": 20, "arts": 4}  # fifty to one
VALIDATION = {"sport": 40, "politics": 20, "science": 12, "business": 5, "arts": 3}


def sentences_of(counts: Mapping[str, int], seed: int) -> list[tuple[str, str]]:
    """Pairs of sentence and class: four to ten words, two or three of them the class's own, shuffled."""
    draw = Random(seed)
    rows = []
    for topic, count in counts.items():
        for _ in range(count):
            words = draw.choices(WORDS[topic].split(), k=draw.randint(2, 3))
            words += draw.choices(FILLERS.split(), k=draw.randint(2, 7))
            draw.shuffle(words)
            rows.append((" ".join(words), topic))
    draw.shuffle(rows)
    return rows


def write_csv(
    file: Path, rows: list[tuple[str, str]], labeled: bool = True, columns: tuple[str, str] = ("sentence", "label")
) -> Path:
    """A file with these columns; the labels are left empty where they are not to be known."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows((sentence, topic if labeled else "") for sentence, topic in rows)
    return file


def topic_flags(folder: Path) -> list[object]:
    """Files of training, validation and unlabeled test sentences, written there, as flags of a run."""
    train, validation = sentences_of(TRAIN, 0), sentences_of(VALIDATION, 1)
    test = sentences_of(dict.fromkeys(WORDS, 4), 2)
    flags: list[object] = ["--train_file", write_csv(folder / "train.csv", train)]
    flags += ["--validation_file", write_csv(folder / "dev.csv", validation)]
    return [*flags, "--test_file", write_csv(folder / "test.csv", test, labeled=False)]
