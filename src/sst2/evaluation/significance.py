"""Significance: intervals over seeds, and tests on the sentences that two runs share.

Runs are compared on the same sentences, which takes out what makes a sentence hard for all of them.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 10_000
BATCH = 100  # resamples that are in memory at once
CONFIDENCE = 0.95
ROUNDING = 1e-12  # what means that are equal may differ by


@dataclass(frozen=True)
class Difference:
    """By how much one configuration is more accurate than another.

    Attributes:
        value: accuracy of the first minus that of the second, means over their runs.
        low, high: 95 % interval over sentences, from a paired bootstrap (percentiles): what other sentences would give.
        p_value: two-sided.
        test: where it is from. `McNemar` for one run against one, which speaks of these two models on other sentences;
            `Welch` for several seeds against several, which speaks of other seeds on these sentences; `paired t` where
            each seed has sentences of its own; else `bootstrap`.
    """

    value: float
    low: float
    high: float
    p_value: float
    test: str


def wilson_interval(num_correct: int, count: int) -> tuple[float, float]:
    """95 % interval of an accuracy (Wilson, 1927)."""
    low, high = stats.binomtest(num_correct, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(low), float(high)


def mean_interval(values: list[float]) -> tuple[float, float, tuple[float, float] | None]:
    """Mean, sample standard deviation (n - 1), and 95 % interval of the mean by Student's t; None for one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, 0.0, None
    low, high = mean + stats.sem(values) * np.array(stats.t.interval(CONFIDENCE, len(values) - 1))
    return mean, float(np.std(values, ddof=1)), (float(low), float(high))


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact test: do two runs err on different numbers of sentences?

    Only sentences count that one of them has right and the other wrong; under the null hypothesis each of these is as
    likely to be the first's as the second's (McNemar, 1947; exact binomial form).

    Args:
        first: (sentences,) bool, whether the prediction of one run is right.
        second: the same of the other run.

    Returns:
        How many sentences only the first has right, how many only the second, and the two-sided p-value.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 0, 0, 1.0
    return only_first, only_second, float(stats.binomtest(only_first, only_first + only_second).pvalue)


@dataclass(frozen=True)
class MeanDifference:
    """By how much the mean of one configuration's runs differs from another's.

    Attributes:
        value: mean of the first minus that of the second.
        low, high: 95 % interval, of other seeds.
        p_value: two-sided; 1 where no two runs differ, and NaN where the runs of neither configuration differ among
            themselves (or all pairs of runs by the same), so that nothing is known of other seeds.
    """

    value: float
    low: float
    high: float
    p_value: float


def compare_means(first: list[float], second: list[float], paired: bool = False) -> MeanDifference:
    """Compare two configurations by a figure of each of their runs, which are on several seeds.

    Runs whose seeds are independent are compared by Welch's t-test (1947): their spread need not be the same in both
    configurations. Where the seed decides on which sentences a run is measured, runs of one seed are pairs, and what
    makes their sentences hard is in both: that is the paired t-test.

    Args:
        first: a figure of each run of one configuration, two runs at least.
        second: the same of the other; of the same seeds in the same order, if `paired`.
        paired: whether runs of one seed are measured on sentences of their own.
    """
    one, other = np.asarray(first), np.asarray(second)
    value = float(one.mean() - other.mean())
    if max(map(np.ptp, [one - other] if paired else [one, other])) < ROUNDING:
        return MeanDifference(value, value, value, 1.0 if abs(value) < ROUNDING else math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a side whose runs are all equal, which has no spread
        result = stats.ttest_rel(one, other) if paired else stats.ttest_ind(one, other, equal_var=False)
    low, high = result.confidence_interval(CONFIDENCE)
    return MeanDifference(value, float(low), float(high), float(result.pvalue))


def holm(p_values: list[float]) -> list[float]:
    """p-values of several hypotheses, corrected: at 0.05, the chance to reject any one that is true is 5 % at most.

    The step-down procedure (Holm, 1979): the smallest is multiplied by their number, the next by one less, and so on;
    none becomes smaller than the one before. A NaN counts as a hypothesis and stays one.
    """
    order = sorted(range(len(p_values)), key=lambda place: (math.isnan(p_values[place]), p_values[place]))
    corrected, least = [math.nan] * len(p_values), 0.0
    for rank, place in enumerate(order):
        if not math.isnan(p_values[place]):
            least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
            corrected[place] = least
    return corrected


def compare_accuracy(first: np.ndarray, second: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Difference:
    """Compare two configurations on the same sentences.

    The paired bootstrap draws sentences with replacement, the same for both sides (Efron & Tibshirani, 1993, chapter
    13); a sentence counts with the mean over a side's seeds. With several seeds on both sides, the p-value is that of
    Welch's t-test (1947) on the seeds' accuracies, unless these do not differ at all.

    Args:
        first: (seeds, sentences), of one configuration: bool, whether each prediction is right; or float, the share of
            a seed's repeats that have it right.
        second: the same of the other configuration; the number of seeds may differ.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    gains = first.mean(axis=0) - second.mean(axis=0)
    low, high, p_value = _paired_bootstrap(gains, seed, resamples)
    test = "bootstrap"
    if len(first) == len(second) == 1 and first.dtype == second.dtype == np.bool_:  # one run each, and no repeats
        (*_, p_value), test = mcnemar(first[0], second[0]), "McNemar"
    elif min(len(first), len(second)) > 1 and max(map(np.ptp, (first.mean(axis=1), second.mean(axis=1)))) > ROUNDING:
        of_sides = [(side.mean(), side.std(ddof=1), len(side)) for side in (first.mean(axis=1), second.mean(axis=1))]
        p_value = float(stats.ttest_ind_from_stats(*of_sides[0], *of_sides[1], equal_var=False).pvalue)
        test = "Welch"
    return Difference(float(gains.mean()), low, high, p_value, test)


def compare_by_seed(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Difference:
    """Compare two configurations whose seeds each have sentences of their own, as hold-outs drawn by the seed are.

    Seeds are pairs: the value is the mean of their differences, with an interval by Student's t, and the p-value that
    of the paired t-test. One seed, or seeds whose differences are all the same, are compared by their sentences.

    Args:
        first: for each seed, (sentences of that seed,) as in `compare_accuracy`, of one configuration.
        second: for each of the same seeds, the same of the other configuration.
    """
    differences = [float(one.mean() - other.mean()) for one, other in zip(first, second, strict=True)]
    if len(differences) < 2 or np.ptp(differences) < ROUNDING:
        return compare_accuracy(np.concatenate(first)[None], np.concatenate(second)[None])
    mean, _, interval = mean_interval(differences)
    assert interval is not None
    return Difference(mean, *interval, float(stats.ttest_1samp(differences, 0.0).pvalue), "paired t")


def _paired_bootstrap(gains: np.ndarray, seed: int, resamples: int) -> tuple[float, float, float]:
    """95 % interval of the mean of gains, (sentences,) float, and the two-sided p-value of its being 0."""
    resampled = stats.bootstrap(
        (np.resize(gains, max(2, len(gains))),),  # scipy wants two sentences; one is as good as itself twice
        np.mean,
        n_resamples=resamples,
        batch=BATCH,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    # The share of resamples beyond 0, on the smaller side, twice; never 0, as if there had been one more.
    drawn = resampled.bootstrap_distribution
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    low, high = resampled.confidence_interval
    return float(low), float(high), min(1.0, 2 * (beyond + 1) / (resamples + 1))
