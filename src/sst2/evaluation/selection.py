"""Selection: what an evaluation is worth, and whether a run is worse than others were at the same step.

The median rule is that of Optuna's MedianPruner: the best evaluation of a run so far against the median of what others
had at the very step, however they went on (Golovin et al., 2017, section 3.2.2, has the average of each run instead).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from sst2.runs.run_folder import RunFolder

FEWEST_OTHERS = 5  # whose median is worth something; as many as Optuna waits for


def score_of(metrics: Mapping[str, Any], name: str) -> float:
    """What an evaluation is worth by `--metric_for_best_model`: the more, the better."""
    value = float(metrics[name])
    return -value if name == "loss" else value


def median_of_others(folder: Path, run: Path, split: str, step: int, name: str) -> float | None:
    """The median score of other runs after `step` optimizer steps.

    Args:
        folder: has the runs, a folder each.
        run: the one of them that is not to be counted.
        split: on which they were evaluated.
        step: after which they were; those that were not at this very step do not count.
        name: of the metric, as `--metric_for_best_model` has it.

    Returns:
        None where there are fewer than `FEWEST_OTHERS`.
    """
    logs = (RunFolder(other).metrics_log for other in folder.glob("*/") if other.resolve() != run.resolve())
    scores = [score for log in logs if (score := _score_at(log, split, step, name)) is not None]
    return median(scores) if len(scores) >= FEWEST_OTHERS else None


def _score_at(log: Path, split: str, step: int, name: str) -> float | None:
    """The score that a `metrics.jsonl`, which somebody may be writing, has for a step."""
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):  # there is none yet, or never
        return None
    for line in reversed(lines):
        try:
            point = json.loads(line)
            if point["split"] == split and point["step"] == step:
                return score_of(point, name)
        except (ValueError, LookupError, TypeError):  # half a line, or no number
            continue
    return None
