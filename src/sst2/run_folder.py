"""The folder of a run: what lies where, and files that are whole or absent."""

import csv
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sst2.errors import UserError
from sst2.metrics import probability_positive
from sst2.reading import LABEL_NAMES


class RunFolder:
    """Paths of one run, below `path`. Creating the object touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.tensorboard = path / "tensorboard"
        self.metrics_log = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.metrics = path / "metrics.json"
        self.predictions = path / "predictions.csv"
        self.log = path / "train.log"

    def claim(self, overwrite: bool) -> None:
        """Create the folder; with `overwrite`, remove the earlier run: all that bears the names above.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if overwrite:
                for entry in [path for path in vars(self).values() if path != self.path]:
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"--output_dir {self.path} cannot be written ({error.strerror}): name another") from None


def write_text(file: Path, text: str) -> None:
    """Write a whole file, or leave the old one as it was."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, file)


def sync(path: Path) -> None:
    """Bring a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write JSON that any reader takes: a NaN or infinity in it is an error here, not there."""
    write_text(file, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_predictions(file: Path, splits: Iterable[tuple[Any, np.ndarray]]) -> None:
    """One line per sentence: split, row, sentence, label (empty if unknown), prediction, probability of POSITIVE.

    Args:
        splits: pairs of a `Split` and its logits, (sentences, 2).
    """
    unfinished = file.with_name(f".{file.name}.unfinished")
    with open(unfinished, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["split", "row", "sentence", "label", "prediction", "probability_positive"])
        for split, logits in splits:
            probabilities, predicted = probability_positive(logits), logits.argmax(axis=1)
            for row, sentence in enumerate(split.sentences):
                label = LABEL_NAMES[split.labels[row]] if split.labels[row] >= 0 else ""
                prediction = LABEL_NAMES[predicted[row]]
                writer.writerow([split.name, row, sentence, label, prediction, f"{probabilities[row]:.6f}"])
    os.replace(unfinished, file)
