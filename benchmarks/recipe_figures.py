"""What the runs of benchmarks/recipes.py say: means over seeds, and differences to the baseline, paired by seed."""

import math
from typing import Any

import numpy as np
from scipy import stats

SIGNIFICANT = 0.05


def summarize(recipes: dict[str, Any]) -> None:
    """Add to each recipe the figures over its seeds, and its differences to the baseline over the seeds of both."""
    baseline = recipes["baseline"]["runs"]
    p_values = {}
    for name, entry in recipes.items():
        runs = entry["runs"]
        if not runs:
            continue
        figures = ("holdout_accuracy", "holdout_loss", "validation_accuracy", "seconds", "sentences_per_second")
        summary: dict[str, Any] = {figure: spread([run[figure] for run in runs.values()]) for figure in figures}
        rates = [run["holdout_accuracy"] / run["seconds"] for run in runs.values()]
        summary["holdout_accuracy_per_second"] = spread(rates)
        shared = [seed for seed in runs if seed in baseline]
        if name != "baseline" and shared:
            for figure in (*figures[:3], "seconds"):
                pairs = [(runs[seed][figure], baseline[seed][figure]) for seed in shared]
                summary[f"difference_in_{figure}"] = paired(pairs)
            p_values[name] = summary["difference_in_holdout_accuracy"]["p"]
        entry["summary"] = summary
    for name, value in holm({name: p for name, p in p_values.items() if p is not None}).items():
        difference = recipes[name]["summary"]["difference_in_holdout_accuracy"]
        difference |= {"p_holm": value, "is_significant": value < SIGNIFICANT}


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean and standard deviation (n - 1); None for that of one value."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def paired(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Mean of the first minus the second, its standard error, and the p-value of a two-sided paired t-test."""
    gains = np.subtract(*np.transpose(pairs))
    found: dict[str, Any] = {"mean": float(gains.mean()), "seeds": len(gains), "standard_error": None, "p": None}
    if len(gains) > 1:
        error = float(gains.std(ddof=1)) / math.sqrt(len(gains))
        found |= {"standard_error": error, "is_within_one_standard_error": bool(abs(gains.mean()) <= error)}
        if np.ptp(gains) > 0:
            found["p"] = float(stats.ttest_1samp(gains, 0.0).pvalue)
        elif gains[0] == 0:  # no difference at all; a t-test would divide by 0
            found["p"] = 1.0
    return found


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """P-values corrected for their number (Holm, 1979)."""
    corrected, highest = {}, 0.0
    for number, (name, value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, value * (len(p_values) - number)))
        corrected[name] = highest
    return corrected


def table(recipes: dict[str, Any]) -> list[list[str]]:
    """Rows of words: a head, and a recipe each."""
    lines = [["recipe", "seeds", "hold-out", "validation", "seconds", "difference", "standard error", "p", "p (Holm)"]]
    for name, entry in recipes.items():
        if not entry["runs"]:
            continue
        summary = entry["summary"]
        line = [name, str(len(entry["runs"]))]
        line += [_mean(summary["holdout_accuracy"], 4), _mean(summary["validation_accuracy"], 4)]
        line.append(_mean(summary["seconds"], 1))
        found = summary.get("difference_in_holdout_accuracy", {})
        for key, form in (("mean", "+.4f"), ("standard_error", ".4f"), ("p", ".3g"), ("p_holm", ".3g")):
            line.append(format(found[key], form) if found.get(key) is not None else "")
        lines.append(line)
    return lines


def _mean(values: dict[str, float | None], digits: int) -> str:
    mean = f"{values['mean']:.{digits}f}"
    return mean if values["std"] is None else f"{mean} ± {values['std']:.{digits}f}"
