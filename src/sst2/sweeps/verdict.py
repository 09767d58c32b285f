"""The verdict on the finalists: by how much each differs from the baseline on fresh seeds, and whether by chance."""

import math
from dataclasses import dataclass

from sst2.evaluation.significance import MeanDifference, compare_means, holm
from sst2.sweeps.finals import Arm, arms
from sst2.sweeps.folder import SweepFolder

HOLDOUT = "holdout"  # the split
LEVEL = 0.05  # of significance


@dataclass(frozen=True)
class Tested:
    """An arm against the baseline. What is None has not been tested, for want of runs that have finished."""

    arm: Arm
    values: list[float]
    difference: MeanDifference | None = None
    corrected: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all its runs have finished, of which there are at least two."""
        return len(self.values) == len(self.arm.runs) > 1

    @property
    def is_significant(self) -> bool:
        """Whether it differs by more than chance."""
        return self.corrected is not None and self.corrected < LEVEL


def _are_paired(sweep: SweepFolder, names: list[str]) -> bool:
    """Whether the finals of one seed are measured on sentences of their own: a hold-out, without validation."""
    found = [run.metrics for arm in arms(sweep, names) for run in arm.runs]
    return any(metrics["split"] == HOLDOUT for metrics in found if metrics)


def tested(sweep: SweepFolder, names: list[str]) -> tuple[list[Tested], bool]:
    """The baseline, and each finalist against it: a t-test over seeds, corrected for the number of finalists.

    Returns these, and whether the tests are of pairs.

    It is Welch's on validation, whose sentences are the same for all runs. Without validation, each seed has a hold-out
    of its own, on which the runs of this seed are measured: these are pairs, and the test is the paired t-test.

    None is tested before all its runs and the baseline's have finished: a verdict on the first of them would be one on
    those that were quick, or have not diverged. The figures are those of the split that `metrics.json` reports:
    validation, where there is one.
    """
    paired = _are_paired(sweep, names)
    values = [
        Tested(arm, [float(run.metrics[sweep.plan.metric]) for run in arm.runs if run.metrics])
        for arm in arms(sweep, names)
    ]
    baseline, finalists = values[0], values[1:]
    found = [
        compare_means(one.values, baseline.values, paired) if one.is_whole and baseline.is_whole else None
        for one in finalists
    ]
    corrected = holm([one.p_value if one else math.nan for one in found])
    against_baseline = [
        Tested(one.arm, one.values, difference, p_value if difference else None)
        for one, difference, p_value in zip(finalists, found, corrected, strict=True)
    ]
    return [baseline, *against_baseline], paired
