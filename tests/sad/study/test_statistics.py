"""Bootstrap intervals over seeds and tasks, paired differences, and corrections."""

from __future__ import annotations

import numpy as np
import pytest

from sad.study.statistics import difference, estimate, holm, pass_hat_k, smallest_visible


def test_interval_of_one_seed_is_that_of_the_mean_over_tasks() -> None:
    values = (np.arange(200) < 80).astype(float)[None]
    found = estimate(values)
    half = 1.96 * (0.4 * 0.6 / 200) ** 0.5
    assert found.mean == pytest.approx(0.4)
    assert found.low == pytest.approx(0.4 - half, abs=0.01) and found.high == pytest.approx(0.4 + half, abs=0.01)


def test_the_variance_between_seeds_is_not_too_small() -> None:
    """With equal tasks only seeds differ. The standard error of the mean of S seeds is s / sqrt(S), also for three."""
    seeds = np.array([0.2, 0.5, 0.8])
    values = np.repeat(seeds[:, None], 50, axis=1)
    found = difference(values, np.zeros_like(values))
    draws = np.array([np.mean(pair) for pair in np.stack(np.meshgrid(seeds, seeds), -1).reshape(-1, 2)])
    assert draws.std() == pytest.approx(seeds.std(ddof=1) / 3**0.5)  # S - 1 = 2 of 3 seeds: the exact variance
    assert found.low == pytest.approx(0.2) and found.high == pytest.approx(0.8)


def test_intervals_cover_the_truth() -> None:
    """In 200 simulated studies of 6 seeds and 80 tasks, about 95 % of the intervals hold the true mean."""
    rng = np.random.default_rng(0)
    held = 0
    for study in range(200):
        chance = rng.normal(0.5, 0.05, (6, 1)) + rng.normal(0, 0.1, (1, 80))
        found = estimate((rng.random((6, 80)) < chance).astype(float), seed=study, resamples=400)
        held += found.low <= 0.5 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def test_equal_methods_do_not_differ_and_unequal_ones_do() -> None:
    rng = np.random.default_rng(1)
    base = (rng.random((3, 300)) < 0.4).astype(float)
    same = difference(base, base)
    assert same.mean == 0 and same.p == 1
    better = np.maximum(base, (rng.random((3, 300)) < 0.2).astype(float))
    found = difference(better, base)
    assert found.low > 0 and found.p < 0.001
    opposite = difference(base, better)
    assert opposite.mean == -found.mean and opposite.high < 0
    assert 0 < smallest_visible(better, base) < 0.2


def test_pairing_makes_the_interval_of_a_difference_narrow() -> None:
    rng = np.random.default_rng(2)
    hard = rng.random(400) < 0.5
    base = np.tile(hard, (3, 1)).astype(float)
    better = base.copy()
    better[:, :8] = 1
    found = difference(better, base)
    assert found.high - found.low < 0.5 * (estimate(base).high - estimate(base).low)


def test_missing_values_are_left_out() -> None:
    values = np.array([[1.0, np.nan, 0.0], [1.0, np.nan, 0.0]])
    assert estimate(values).mean == 0.5


def test_holm() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0} and holm({}) == {}


def test_pass_hat_k() -> None:
    assert pass_hat_k([4, 2, 0], 4) == pytest.approx([0.5, (1 + 1 / 6) / 3, 1 / 3, 1 / 3])
