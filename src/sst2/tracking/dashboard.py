"""What TensorBoard shows of a run beside curves: the custom scalars' layout, and pictures and texts of evaluations."""

import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from torch.utils.tensorboard import SummaryWriter

from sst2.config.flag_groups import LABEL_NAMES
from sst2.evaluation.error_analysis import changed_sides, most_confident_mistakes
from sst2.evaluation.predictions import log_probabilities
from sst2.utils.device_timing import PHASES

if TYPE_CHECKING:
    from sst2.data.splits import Split

logger = logging.getLogger(__name__)

PICTURE_SHARE = 0.01  # of the run's time that pictures may take
MOST_CURVES = 20  # of precision and recall: the classes with the most sentences
FIRST_PICTURES_SECONDS = 1.5  # what those of one evaluation take, before any was drawn: most of it is imports


class Dashboard:
    """Writes to a TensorBoard writer, for the one process that has one."""

    def __init__(
        self,
        writer: SummaryWriter,
        selection_split: str,
        label_names: Sequence[str] = LABEL_NAMES,
        num_ranks: int = 1,
    ) -> None:
        self._writer = writer
        self._shown: set[tuple[str, int]] = set()  # splits and steps
        self._drawn: set[tuple[str, int]] = set()
        self._before: dict[str, tuple[int, np.ndarray]] = {}  # of each split, the last step shown, and probabilities
        self._drawing_seconds = 0.0
        self._pictures_seconds = FIRST_PICTURES_SECONDS
        writer.add_custom_scalars(layout(selection_split, len(label_names), num_ranks))

    def show(self, split: "Split", step: int, logits: np.ndarray, run_seconds: float | None = None) -> None:
        """Show one evaluation: once for each split and step. Without labels, there is only the histogram.

        Args:
            split: with its sentences and labels.
            step: optimizer steps that the model has taken.
            logits: (sentences, classes), in the order of the split.
            run_seconds: that the run has trained for. Pictures are left out where drawing would take more than
                `PICTURE_SHARE` of them in all; they are drawn in any case if None.
        """
        key, probabilities = (split.name, step), np.exp(log_probabilities(logits))
        if key not in self._shown:
            self._shown.add(key)
            self._write_curves(split, step, probabilities)
            if split.is_labeled:
                self._write_texts(split, step, probabilities)
        if split.is_labeled and key not in self._drawn and self._can_afford_pictures(run_seconds):
            self._drawn.add(key)
            self._draw(split, step, probabilities)

    def _write_curves(self, split: "Split", step: int, probabilities: np.ndarray) -> None:
        """A histogram, and precision over recall where there are labels: of the class 1 of two, else of each."""
        if probabilities.shape[1] == 2:
            positive = probabilities[:, 1]
            self._writer.add_histogram(f"{split.name}/probability_positive", positive, step)
            if split.is_labeled:
                self._writer.add_pr_curve(f"{split.name}/precision_recall", split.labels, positive, step)
            return
        self._writer.add_histogram(f"{split.name}/probability_predicted", probabilities.max(axis=1), step)
        if split.is_labeled:
            counts = np.bincount(split.labels, minlength=probabilities.shape[1])
            for number in np.argsort(-counts, kind="stable")[:MOST_CURVES]:
                tag = f"{split.name}/precision_recall/{split.label_names[number]}"
                self._writer.add_pr_curve(tag, split.labels == number, probabilities[:, number], step)

    def _write_texts(self, split: "Split", step: int, probabilities: np.ndarray) -> None:
        texts = {"most_confident_mistakes": most_confident_mistakes(split, probabilities)}
        shown, before = self._before.get(split.name, (step, probabilities))
        if shown < step:  # at the end, a run may come back to an earlier model
            texts["changed_sides"] = changed_sides(split, before, probabilities)
        self._before[split.name] = step, probabilities
        for name, text in texts.items():
            self._writer.add_text(f"{split.name}/{name}", text, step)

    def _can_afford_pictures(self, run_seconds: float | None) -> bool:
        return run_seconds is None or self._drawing_seconds + self._pictures_seconds <= PICTURE_SHARE * run_seconds

    def _draw(self, split: "Split", step: int, probabilities: np.ndarray) -> None:
        started = time.perf_counter()
        keep_matplotlib_in(Path(datasets.config.HF_DATASETS_CACHE) / "sst2-matplotlib")
        try:
            from sst2.tracking.plots import draw_evaluation  # its libraries take most of a second

            pictures = draw_evaluation(split.labels, probabilities, split.label_names)
        except Exception as error:  # whatever it is, no run shall be lost for a picture
            logger.warning("pictures of %s cannot be drawn: %s: %s", split.name, type(error).__name__, error)
            return
        for name, picture in pictures.items():
            self._writer.add_image(f"{split.name}/{name}", picture, step, dataformats="HWC")
        self._pictures_seconds = time.perf_counter() - started
        self._drawing_seconds += self._pictures_seconds


def layout(selection_split: str, num_classes: int = 2, num_ranks: int = 1) -> dict[str, dict[str, list[Any]]]:
    """TensorBoard's custom scalars: what belongs together in one chart, for the split evaluated during training."""

    def lines(*tags: str) -> list[Any]:
        return ["Multiline", [f"^{tag}$" for tag in tags]]  # they are regular expressions

    def of_split(*names: str) -> list[str]:
        return [f"{selection_split}/{name}" for name in names]

    interval = of_split("accuracy", "accuracy_ci95/0", "accuracy_ci95/1")
    rates = {"precision, recall, f1": lines(*of_split("precision", "recall", "f1"))}
    if num_classes > 2:
        averages = of_split("precision_macro", "recall_macro", "f1_macro", "f1_weighted")
        rates = {
            "precision, recall, f1, averages over classes": lines(*averages),
            "f1 of each class": lines(*of_split("per_class/.*/f1")),
        }
    shares = [f"train/{name}_share" for name in (*PHASES, "waiting")]
    of_ranks = {
        "by how much the slowest process computes longer than the median": lines("train/slowest_rank_slowdown"),
        "computing and waiting in a step by process, seconds": lines("train/rank_.*_seconds/.*"),
    }
    return {
        "training": {
            "loss, in training and in evaluation": lines("train/loss", *of_split("loss")),
            "learning rate": lines("train/learning_rate"),
        },
        "evaluation": {
            "accuracy and its 95 % interval": ["Margin", interval],
            **rates,
            "calibration error": lines(*of_split("ece")),
        },
        "speed": {
            "sentences a second": lines("train/sentences_per_second"),
            "share of the measured matmul peak": lines("train/matmul_peak_share"),
            "where the time of a step goes": lines(*shares),
            **(of_ranks if num_ranks > 1 else {}),
            "checkpoints: training pauses, and until written, seconds": lines("checkpoint/.*"),
        },
        "health": {
            "gradient norm": lines("train/grad_norm"),
            "skipped steps": lines("train/skipped_steps"),
            "peak memory, MiB": lines("train/peak_memory_mib"),
            "padding, and imbalance between processes": lines("train/padding_share", "train/token_imbalance"),
        },
    }


def keep_matplotlib_in(folder: Path) -> None:
    """Where matplotlib is to write what it knows of fonts, if nobody has said so. To be called before its import.

    By default that is in the home folder, which a compute node may not be able to write.
    """
    if "matplotlib" not in sys.modules:
        os.environ.setdefault("MPLCONFIGDIR", str(folder))
