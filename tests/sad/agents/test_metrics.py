"""The paper's worked examples (appendix C), and what they leave open."""

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
    assert metrics.average_reasoning_length([[1] * 12, [1] * 15, [1] * 14]) == pytest.approx(13.67, abs=0.005)
    assert metrics.average_steps([16, 13, 20]) == pytest.approx(16.33, abs=0.005)
    teacher, student = [list(range(9))], [[0, 1, 2, 3, 4, 5, 100, 101]]
    assert metrics.cot_match_rate(student, teacher) == pytest.approx(0.6667, abs=5e-5)
    assert metrics.success_rate([True, False, True, True]) == 0.75


def test_cot_match_counts_a_token_as_often_as_both_sides_have_it() -> None:
    assert metrics.cot_match_rate([["a", "a", "a", "b"]], [["a", "a", "c", "c"]]) == 0.5
    # a set intersection would give 1.0 here; saying "a" once does not cover saying it four times
    assert metrics.cot_match_rate([["a"]], [["a"] * 4]) == 0.25


def test_cot_match_is_a_mean_over_trajectories_not_over_tokens() -> None:
    assert metrics.cot_match_rate([[1], [9]], [[1], [2, 3, 4]]) == 0.5


def test_cot_match_leaves_out_a_teacher_without_reasoning() -> None:
    assert metrics.cot_match_rate([[1], [1]], [[1], []]) == 1.0
    assert math.isnan(metrics.cot_match_rate([[1]], [[]]))


@given(TOKENS, TOKENS.filter(bool))
def test_cot_match_by_hand_counting(student: list[int], teacher: list[int]) -> None:
    shared = sum(min(n, Counter(student)[token]) for token, n in Counter(teacher).items())
    assert metrics.cot_match_rate([student], [teacher]) == pytest.approx(shared / len(teacher))
    assert metrics.cot_match_rate([teacher], [teacher]) == 1.0


def test_interval_agrees_with_resampling_task_by_task() -> None:
    import numpy as np

    successes = [True] * 33 + [False] * 17
    rng = np.random.default_rng(1)
    drawn = rng.choice(successes, size=(20_000, 50)).mean(axis=1)
    low, high = metrics.success_interval(successes)
    assert (low, high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.021)  # one task is 0.02
    assert low < 0.66 < high


def test_interval_is_seeded_and_honest_at_the_ends() -> None:
    successes = [True] * 7 + [False] * 5
    assert metrics.success_interval(successes, seed=3) == metrics.success_interval(successes, seed=3)
    assert metrics.success_interval([True] * 9) == (1.0, 1.0)
    narrow, wide = (metrics.success_interval(successes, level=level) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] and narrow[1] < wide[1]


def test_interval_of_a_mean_is_that_of_the_success_rate_and_narrows_with_the_root_of_the_tasks() -> None:
    import numpy as np

    successes = [True] * 33 + [False] * 17
    assert metrics.mean_interval(successes) == pytest.approx(metrics.success_interval(successes), abs=0.021)
    values = np.random.default_rng(0).normal(10, 3, size=900)
    low, high = metrics.mean_interval(values)
    error = values.std() / 30  # of the mean of 900
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error)
    assert metrics.mean_interval([4.0] * 5) == (4.0, 4.0)
    assert metrics.mean_interval(values, seed=3) == metrics.mean_interval(values, seed=3) != (low, high)


def test_interval_of_a_ratio_draws_both_sides_of_a_task_together() -> None:
    assert metrics.ratio_interval([1, 2, 3], [2, 4, 6]) == (0.5, 0.5)  # a half in every task
    low, high = metrics.ratio_interval([0, 10], [10, 10])
    assert (low, high) == (0.0, 1.0)
    assert metrics.ratio_interval([0, 3], [0, 6]) == (0.5, 0.5)  # draws of the idle task alone are left out
    assert all(map(math.isnan, metrics.ratio_interval([0], [0])))


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.success_rate([]),
        lambda: metrics.average_steps([]),
        lambda: metrics.average_reasoning_length([]),
        lambda: metrics.cot_match_rate([[1]], [[1], [2]]),
        lambda: metrics.success_interval([True], level=95),
        lambda: metrics.mean_interval([]),
        lambda: metrics.mean_interval([1.0], level=0),
        lambda: metrics.ratio_interval([1, 2], [1]),
    ],
)
def test_refusals(call) -> None:
    with pytest.raises(InputError):
        call()
