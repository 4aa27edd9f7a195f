"""Means over seeds and tasks, and differences between methods, with bootstrap intervals.

All methods of a student play the same tasks with the same seeds. So the results of a method are a table (S seeds, N tasks),
and two methods are compared pairwise. A resample draws seeds and, independently, tasks, both with replacement; the tasks are
the same for all seeds, because the seeds play the same tasks.

A resample has S - 1 of the S seeds (Rao and Wu, 1988, "Resampling inference with complex survey data"). With S of S, the
variance between seeds would be too small by (S - 1) / S, which matters for three seeds. With one seed the interval is over
tasks only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_CHUNK = 500


class Estimate(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """A difference of two means, its 95 % interval, and the two-sided p value of no difference."""

    mean: float
    low: float
    high: float
    p: float


def estimate(values: NDArray, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Returns the mean over seeds and tasks.

    Args:
        values: (S, N). NaN is left out, for tasks without a value.
        seed: Seed of the resampling.
        resamples: Number of resamples.
    """
    means = _resample(values, seed, resamples)
    low, high = np.nanquantile(means, [0.025, 0.975])
    return Estimate(float(np.nanmean(values)), float(low), float(high))


def difference(values: NDArray, baseline: NDArray, seed: int = 0) -> Difference:
    """Compares two methods that have played the same tasks with the same seeds.

    The p value is 2 min(P(d* <= 0), P(d* >= 0)) over the resampled differences d*, with one added to both counts, so it is
    never 0.

    Args:
        values: (S, N).
        baseline: (S, N), the other method.
        seed: Seed of the resampling.
    """
    own = values - baseline
    means = _resample(own, seed)
    low, high = np.nanquantile(means, [0.025, 0.975])
    below, above = (means <= 0).sum() + 1, (means >= 0).sum() + 1
    p = min(1.0, 2 * min(below, above) / (len(means) + 1))
    return Difference(float(np.nanmean(own)), float(low), float(high), float(p))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusts the p values of several comparisons (S. Holm, 1979), so that the chance of one false claim stays below 5 %."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def pass_hat_k(solved: Sequence[int], samples: int) -> list[float]:
    """Returns pass^k for k = 1 to `samples`: the chance that k samples of a task are all solved, averaged over tasks.

    It is the unbiased estimate C(c, k) / C(n, k) for c solved of n samples (tau-bench, arXiv 2406.12045).

    Args:
        solved: Solved samples of each task.
        samples: Samples per task, n.
    """
    return [sum(comb(count, k) for count in solved) / comb(samples, k) / len(solved) for k in range(1, samples + 1)]


def smallest_visible(values: NDArray, baseline: NDArray) -> float:
    """Returns the difference that the study would find with a power of 80 %: 2.8 standard errors of the difference."""
    return float(2.8 * _resample(values - baseline, 0).std())


def _resample(values: NDArray, seed: int, resamples: int = RESAMPLES) -> NDArray:
    """Returns (resamples,) means of resampled tables. One without any value is NaN."""
    seeds, tasks = values.shape
    rng = np.random.default_rng(seed)
    drawn = max(seeds - 1, 1)
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    means: list[NDArray] = []
    for start in range(0, resamples, _CHUNK):  # in chunks, to bound the memory
        count = min(_CHUNK, resamples - start)
        rows = rng.integers(seeds, size=(count, drawn, 1))
        columns = rng.integers(tasks, size=(count, 1, tasks))
        total, number = (table[rows, columns].sum(axis=(1, 2)) for table in (filled, known))
        means.append(np.divide(total, number, out=np.full(count, np.nan), where=number > 0))
    return np.concatenate(means)
