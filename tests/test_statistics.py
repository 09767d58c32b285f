"""Intervals and tests, against figures worked out elsewhere and against what repeated draws do."""

import numpy as np
import pytest
from scipy import stats

from sst2.statistics import compare_accuracy, mcnemar, mean_interval


def test_the_interval_of_a_mean_is_students() -> None:
    values = [0.91, 0.93, 0.92, 0.90]
    mean, deviation, interval = mean_interval(values)
    assert mean == pytest.approx(0.915)
    assert deviation == pytest.approx(0.0129099, abs=1e-6)
    expected = stats.t.interval(0.95, df=3, loc=0.915, scale=stats.sem(values))
    assert interval == pytest.approx(expected)
    assert mean_interval([0.5]) == (0.5, 0.0, None)


def test_mcnemar_counts_the_sentences_that_one_alone_has_right() -> None:
    # 4 against 12 of 16: twice P(X <= 4) of a fair coin thrown 16 times is 0.0768
    first = np.array([True] * 100 + [True] * 4 + [False] * 12)
    second = np.array([True] * 100 + [False] * 4 + [True] * 12)
    assert mcnemar(first, second) == pytest.approx(0.076813, abs=1e-6)
    assert mcnemar(second, first) == mcnemar(first, second)
    assert mcnemar(first, first) == 1.0


def test_one_run_against_one_is_mcnemars_case() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.random((1, 872)) < 0.93, generator.random((1, 872)) < 0.90
    found = compare_accuracy(first, second)
    assert found.test == "McNemar"
    assert found.p_value == mcnemar(first[0], second[0])
    assert found.value == pytest.approx(first.mean() - second.mean())
    # of a mean of independent differences: the normal approximation is near
    reach = 1.96 * (first[0].astype(float) - second[0]).std() / 872**0.5
    assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach), abs=2e-3)


def test_several_runs_share_what_is_hard_in_a_sentence() -> None:
    generator = np.random.default_rng(2)
    is_hard = generator.random(872) < 0.2
    first = np.array([generator.random(872) < np.where(is_hard, 0.55, 0.99) for _ in range(4)])
    second = np.array([generator.random(872) < np.where(is_hard, 0.40, 0.98) for _ in range(4)])
    found = compare_accuracy(first, second)
    assert found.test == "bootstrap"
    assert found.low < found.value < found.high
    assert found.p_value < 0.01
    assert compare_accuracy(second, first).value == -found.value
    same = compare_accuracy(first, first)
    assert (same.value, same.p_value) == (0.0, 1.0)
    assert compare_accuracy(first, second) == found  # the same draws every time


def test_where_nothing_differs_few_comparisons_say_so() -> None:
    generator = np.random.default_rng(3)
    p_values = []
    for _ in range(60):
        both = generator.random((2, 3, 200)) < 0.9
        p_values.append(compare_accuracy(*both, resamples=400).p_value)
    assert np.mean(np.array(p_values) < 0.05) < 0.15
