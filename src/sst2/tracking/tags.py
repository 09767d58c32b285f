"""Tags: the names of a run's curves, pictures and texts in TensorBoard, and of its numbers in other trackers.

TensorBoard's landing page, Time Series, sorts tags by name, groups them by what stands before the first slash, opens
the first two groups and leaves all others closed. A window has room for about four charts. So `eval` and `train` hold
only the curves to look at first, and every other group has a name that comes after `train`. The HParams table, too,
shows the first five tags by name.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sst2.utils.device_timing import PHASES

RANK_TIMES = ["rank_compute_seconds", "rank_waiting_seconds"]  # lists, a number for each rank
MOST_RANKS = 16  # whose times are curves
OF_TRAINING = {  # groups and what they hold
    "train": ["loss"],
    "train_optimizer": "grad_norm learning_rate skipped_steps".split(),
    "train_system": "checkpoint_pause_seconds checkpoint_total_seconds peak_memory_mib".split(),
    "train_time": [f"{phase}_share" for phase in (*PHASES, "waiting")] + RANK_TIMES + ["slowest_rank_slowdown"],
}
OF_TRAINING_ELSE = "train_speed"
OF_EVALUATIONS = "eval"  # on the split that models are selected on, which may be a hold-out or the validation split
SHOWN_FIRST = "accuracy f1_macro loss".split()
OF_BEST = "train_best"  # in the HParams table, one of the first five; on the landing page closed
OF_EVALUATIONS_ELSE = "verbose_eval"
OF_OTHER_SPLITS = "trained_model"  # they are evaluated once, at the end

NO_CURVES = (
    "confusion_matrix count slowest_rank support".split()
)  # constant, or drawn as a picture; all are in metrics.jsonl
MOST_CURVES = 20  # of one kind: the classes with the most sentences
LONGEST_NAME = 60  # characters of a class; mlflow takes tags of 250
_UNSAFE = re.compile(r"[^\w.\- ]")  # mlflow takes letters of any language, digits, _ - . and spaces between slashes


class Tags:
    """The tags of a run, which do not tell what the split is called that its models are selected on.

    Args:
        selection_split: the name of that split.
        label_names: of the classes.
    """

    def __init__(self, selection_split: str, label_names: Sequence[str]) -> None:
        self._selection_split = selection_split
        self._classes = dict(zip(label_names, names_in_tags(label_names), strict=True))

    def detail(self, split: str, name: str) -> str:
        """The tag of what is not shown first of an evaluation: pictures, texts, and most of its numbers."""
        return (
            f"{OF_EVALUATIONS_ELSE}/{name}" if split == self._selection_split else f"{OF_OTHER_SPLITS}/{split}/{name}"
        )

    def of_class(self, split: str, name: str, label_name: str) -> str:
        """The tag of something of a class in an evaluation."""
        return self.detail(split, f"{name}/{self._classes[label_name]}")

    @property
    def interval(self) -> list[str]:
        """The tags of the accuracy of the split that models are selected on, and of the ends of its interval."""
        return [self._tag(self._selection_split, name) for name in ("accuracy", "accuracy_ci95/0", "accuracy_ci95/1")]

    def scalars(self, split: str, values: dict[str, Any]) -> dict[str, float]:
        """Numbers by tag, of a logged point as it is in `metrics.jsonl`. Dictionaries and lists are spread over tags.

        Args:
            split: `train`, or the one that was evaluated.
            values: by name.
        """
        if "per_class" in values:
            rows = sorted(values["per_class"].items(), key=lambda row: -row[1]["support"])[:MOST_CURVES]
            values = values | {"per_class": {self._classes[name]: row for name, row in rows}}
        curves = {name: value for name, value in values.items() if name not in RANK_TIMES or len(value) <= MOST_RANKS}
        return {self._tag(split, name): number for name, number in flatten(curves).items()}

    def _tag(self, split: str, name: str) -> str:
        if split == "train":
            whole = name.partition("/")[0]
            group = next((group for group, names in OF_TRAINING.items() if whole in names), OF_TRAINING_ELSE)
            return f"{group}/{name}"
        if split == self._selection_split and name in SHOWN_FIRST:
            return f"{OF_EVALUATIONS}/{name}"
        if name.startswith("best_"):
            return f"{OF_BEST}/eval_{name.removeprefix('best_')}"
        return self.detail(split, name)


def names_in_tags(label_names: Sequence[str]) -> list[str]:
    """Names of classes as a part of a tag: letters, digits, `_`, `-` and `.`, and no two alike.

    Those that would be alike have the number of their class behind a space, which is in no other name.
    """
    names = [_UNSAFE.sub("_", unicodedata.normalize("NFC", name)).replace(" ", "_") for name in label_names]
    names = [name[:LONGEST_NAME] for name in names]
    names = [name if name.strip(".") else "_" * len(name) for name in names]  # mlflow takes a tag for a path
    counts = Counter(name.casefold() for name in names)
    return [name if counts[name.casefold()] == 1 else f"{name} {number}" for number, name in enumerate(names)]


def flatten(values: dict[str, Any]) -> dict[str, float]:
    """Numbers by name: `{"a": {"65+": 1}, "ci": [2, 3]}` gives `{"a/65_": 1, "ci/0": 2, "ci/1": 3}`.

    None is left out, and so are `NO_CURVES`.
    """
    flat: dict[str, float] = {}
    for name, value in values.items():
        inner = dict(enumerate(value)) if isinstance(value, list) else value
        if value is None or (name in NO_CURVES and not isinstance(value, dict)):  # a class may have such a name
            continue
        safe = _UNSAFE.sub("_", str(name))
        if isinstance(inner, dict):
            flat |= {f"{safe}/{key}": number for key, number in flatten(inner).items()}
        else:
            flat[safe] = value
    return flat
