"""Intervals and tests, against figures worked out elsewhere and against what repeated draws do."""

import numpy as np
import pytest
from scipy import stats

from sst2.evaluation.significance import (
    compare_accuracy,
    compare_by_seed,
    compare_means,
    holm,
    mcnemar,
    mean_interval,
)


def test_the_interval_of_a_mean_is_students() -> None:
    values = [0.91, 0.93, 0.92, 0.90]
    mean, deviation, interval = mean_interval(values)
    assert mean == pytest.approx(0.915)
    assert deviation == pytest.approx(0.0129099, abs=1e-6)
    expected = stats.t.interval(0.95, df=3, loc=0.915, scale=stats.sem(values))
    assert interval == pytest.approx(expected)
    assert mean_interval([0.5]) == (0.5, 0.0, None)
    assert mean_interval([0.9, 0.9, 0.9]) == (0.9, 0.0, (0.9, 0.9))


def test_mcnemar_counts_the_sentences_that_one_alone_has_right() -> None:
    # 4 against 12 of 16: twice P(X <= 4) of a fair coin thrown 16 times is 0.0768
    first = np.array([True] * 100 + [True] * 4 + [False] * 12)
    second = np.array([True] * 100 + [False] * 4 + [True] * 12)
    assert mcnemar(first, second) == pytest.approx((4, 12, 0.076813), abs=1e-6)
    assert mcnemar(second, first) == pytest.approx((12, 4, 0.076813), abs=1e-6)
    assert mcnemar(first, first) == (0, 0, 1.0)


def test_one_run_against_one_is_mcnemars_case() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.random((1, 872)) < 0.93, generator.random((1, 872)) < 0.90
    found = compare_accuracy(first, second)
    assert found.test == "McNemar"
    assert found.p_value == mcnemar(first[0], second[0])[2]
    assert found.value == pytest.approx(first.mean() - second.mean())
    # of a mean of independent differences: the normal approximation is near
    reach = 1.96 * (first[0].astype(float) - second[0]).std() / 872**0.5
    assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach), abs=2e-3)
    alone = compare_accuracy(np.array([[True]]), np.array([[False]]))  # runs on one sentence
    assert (alone.value, alone.low, alone.high, alone.p_value) == (1.0, 1.0, 1.0, 1.0)


def runs_of(generator: np.random.Generator, count: int, accuracy: float, spread: float) -> np.ndarray:
    """Runs whose accuracies differ by seed, on sentences of which some are hard for all of them."""
    accuracies = generator.normal(accuracy, spread, size=(count, 1))
    return generator.random((count, 872)) < accuracies


def test_several_against_several_is_welchs_case() -> None:
    generator = np.random.default_rng(2)
    first, second = runs_of(generator, 5, 0.93, 0.005), runs_of(generator, 4, 0.90, 0.005)
    found = compare_accuracy(first, second)
    assert found.test == "Welch"
    expected = stats.ttest_ind(first.mean(axis=1), second.mean(axis=1), equal_var=False).pvalue
    assert found.p_value == pytest.approx(expected)
    assert found.low < found.value < found.high
    assert compare_accuracy(second, first).value == pytest.approx(-found.value)
    assert compare_accuracy(first, second) == found  # the same draws every time
    same = compare_accuracy(first, first)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert same.p_value == pytest.approx(1.0)
    constant = np.ones((3, 10), dtype=bool)  # nothing to divide by
    assert compare_accuracy(constant, constant).p_value == 1.0
    assert 0 < compare_accuracy(constant, ~constant).p_value < 0.001


def test_one_against_several_is_left_to_the_bootstrap() -> None:
    generator = np.random.default_rng(4)
    found = compare_accuracy(runs_of(generator, 1, 0.95, 0.0), runs_of(generator, 3, 0.90, 0.0))
    assert found.test == "bootstrap"
    assert 0 < found.p_value < 0.05


def test_where_only_seeds_differ_about_one_comparison_in_twenty_says_otherwise() -> None:
    generator = np.random.default_rng(3)
    p_values = [
        compare_accuracy(runs_of(generator, 5, 0.9, 0.01), runs_of(generator, 5, 0.9, 0.01), resamples=10).p_value
        for _ in range(1000)
    ]
    assert 0.03 < np.mean(np.array(p_values) < 0.05) < 0.07


def test_seeds_with_sentences_of_their_own_are_pairs() -> None:
    right = [np.arange(100) < count for count in (80, 70, 90)]
    better = [np.arange(50) < count for count in (43, 39, 46)]  # of other numbers of sentences
    found = compare_by_seed(better, right)
    expected = stats.ttest_1samp([0.06, 0.08, 0.02], 0)
    interval = expected.confidence_interval()
    assert found.test == "paired t"
    assert (found.value, found.low, found.high) == pytest.approx((0.16 / 3, interval.low, interval.high))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert compare_by_seed(right[:1], [~right[0]]).test == "McNemar"
    # Both differ by 0.05, but for rounding: no spread over seeds from which to take a p-value.
    first, second = [np.arange(100) < count for count in (92, 86)], [np.arange(100) < count for count in (87, 81)]
    assert compare_by_seed(first, second).test == "McNemar"  # of 200 sentences
    assert compare_by_seed(first, second).value == pytest.approx(0.05)


def test_repeats_count_as_one_seed() -> None:
    repeats = np.array([[1.0, 1.0, 0.5, 0.0]])
    found = compare_accuracy(repeats, np.array([[True, False, False, False]]))
    assert (found.value, found.test) == (0.375, "bootstrap")


def test_means_over_seeds_are_compared_by_welchs_test() -> None:
    # Worked by hand: means 3 and 6, variances of the means 1/3 and 1/3 * 4, t = -3 / sqrt(5/3).
    first, second = [2.0, 3.0, 4.0], [4.0, 6.0, 8.0]
    found = compare_means(first, second)
    freedom = (5 / 3) ** 2 / ((1 / 3) ** 2 / 2 + (4 / 3) ** 2 / 2)
    assert found.value == -3
    assert found.p_value == pytest.approx(2 * stats.t.cdf(-3 / np.sqrt(5 / 3), freedom))
    half = stats.t.ppf(0.975, freedom) * np.sqrt(5 / 3)
    assert (found.low, found.high) == pytest.approx((-3 - half, -3 + half))


def test_means_of_pairs_are_compared_by_their_differences() -> None:
    first, second = [0.81, 0.92, 0.73], [0.80, 0.90, 0.70]
    found, expected = compare_means(first, second, paired=True), stats.ttest_rel(first, second)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.p_value < 0.1 < compare_means(first, second).p_value
    shifted = compare_means([0.81, 0.91, 0.71], second, paired=True)  # by 0.01, but for rounding
    assert np.isnan(shifted.p_value)
    assert (shifted.low, shifted.high) == pytest.approx((0.01, 0.01))


@pytest.mark.filterwarnings("error")
def test_seeds_that_are_all_equal_on_one_side_are_compared_without_a_warning() -> None:
    found = compare_means([0.81, 0.81, 0.81], [0.80, 0.81, 0.82])
    assert (found.value, found.p_value) == pytest.approx((0, 1))
    worse = compare_means([0.7 + 1e-16, 0.7, 0.7], [0.80, 0.81, 0.82])
    expected = stats.ttest_1samp([0.80, 0.81, 0.82], 0.7)  # what has no spread is a number
    assert worse.p_value == pytest.approx(expected.pvalue)


def test_without_a_spread_over_seeds_nothing_is_known() -> None:
    assert np.isnan(compare_means([1.0, 1.0], [2.0, 2.0]).p_value)
    assert compare_means([1.0, 1.0], [1.0, 1.0]).p_value == 1.0


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm (1979), by hand
    assert holm([0.02]) == [0.02]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    with_one_untested = holm([0.02, float("nan")])
    assert with_one_untested[0] == 0.04
    assert np.isnan(with_one_untested[1])
    assert holm([]) == []


def test_holm_errs_no_more_often_than_it_says() -> None:
    # 2,000 families of five true hypotheses: one of them is rejected in about 5 % of the families, not in 23 %.
    draws = np.random.default_rng(0).random((2000, 5))
    rejected = np.mean([min(holm(family.tolist())) < 0.05 for family in draws])
    assert 0.035 < rejected < 0.065
