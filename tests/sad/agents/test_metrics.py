"""Worked examples of the paper (appendix C), and properties of the metrics and intervals."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sad.agents import metrics
from sad.errors import InputError

TOKENS = st.lists(st.integers(0, 5), max_size=12)


def test_worked_examples_of_the_paper() -> None:
    teacher, student = [list(range(9))], [[0, 1, 2, 3, 4, 5, 100, 101]]
    assert metrics.cot_match_rates(student, teacher) == pytest.approx([0.6667], abs=5e-5)
    assert metrics.success_rate([True, False, True, True]) == 0.75


def test_cot_match_is_a_multiset_intersection() -> None:
    assert metrics.cot_match_rates([["a", "a", "a", "b"]], [["a", "a", "c", "c"]]) == [0.5]
    assert metrics.cot_match_rates([["a"]], [["a"] * 4]) == [0.25]  # a set intersection would give 1.0


def test_cot_match_is_one_rate_per_trajectory() -> None:
    assert metrics.cot_match_rates([[1], [9]], [[1], [2, 3, 4]]) == [1.0, 0.0]


def test_cot_match_omits_trajectories_without_teacher_reasoning() -> None:
    assert metrics.cot_match_rates([[1], [1]], [[1], []]) == [1.0]
    assert metrics.cot_match_rates([[1]], [[]]) == []


@given(TOKENS, TOKENS.filter(bool))
def test_cot_match_equals_a_plain_count(student: list[int], teacher: list[int]) -> None:
    shared = sum(min(n, Counter(student)[token]) for token, n in Counter(teacher).items())
    assert metrics.cot_match_rates([student], [teacher]) == pytest.approx([shared / len(teacher)])
    assert metrics.cot_match_rates([teacher], [teacher]) == [1.0]


def test_success_interval_is_that_of_wilson() -> None:
    """Bounds of published tables: R. G. Newcombe (1998), table I, method 3."""
    for successes, total, bounds in ((81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611))):
        found = metrics.success_interval([True] * successes + [False] * (total - successes))
        assert found == pytest.approx(bounds, abs=5e-5)
    assert metrics.success_interval([False] * 7)[0] == 0 and metrics.success_interval([True] * 7)[1] == 1
    assert metrics.success_interval([True] * 7)[0] == pytest.approx(1 - metrics.success_interval([False] * 7)[1])


def test_success_interval_widens_with_the_level() -> None:
    successes = [True] * 7 + [False] * 5
    narrow, wide = (metrics.success_interval(successes, level=level) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] and narrow[1] < wide[1]


def test_mean_interval_equals_success_interval_and_the_normal_approximation() -> None:
    import numpy as np

    successes = [True] * 33 + [False] * 17
    assert metrics.mean_interval(successes) == pytest.approx(metrics.success_interval(successes), abs=0.03)
    values = np.random.default_rng(0).normal(10, 3, size=900)
    low, high = metrics.mean_interval(values)
    error = values.std() / 30  # standard error of the mean of 900 values
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error)
    assert metrics.mean_interval([4.0] * 5) == (4.0, 4.0)
    assert metrics.mean_interval(values, seed=3) == metrics.mean_interval(values, seed=3) != (low, high)


def test_ratio_interval_resamples_numerator_and_denominator_together() -> None:
    assert metrics.ratio_interval([1, 2, 3], [2, 4, 6]) == (0.5, 0.5)  # the ratio is 0.5 in every task
    low, high = metrics.ratio_interval([0, 10], [10, 10])
    assert (low, high) == (0.0, 1.0)
    assert metrics.ratio_interval([0, 3], [0, 6]) == (0.5, 0.5)  # resamples with the idle task only are ignored
    assert all(map(math.isnan, metrics.ratio_interval([0], [0])))


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.success_rate([]),
        lambda: metrics.cot_match_rates([], []),
        lambda: metrics.cot_match_rates([[1]], [[1], [2]]),
        lambda: metrics.success_interval([True], level=95),
        lambda: metrics.mean_interval([]),
        lambda: metrics.mean_interval([1.0], level=0),
        lambda: metrics.ratio_interval([1, 2], [1]),
    ],
)
def test_invalid_input(call) -> None:
    with pytest.raises(InputError):
        call()
