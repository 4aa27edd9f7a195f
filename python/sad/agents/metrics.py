"""The metrics that compare agents (paper appendix C), and their intervals: Wilson for success, bootstrap for the others.

Rates are fractions in [0, 1].
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np

from sad.errors import InputError


def success_rate(successes: Sequence[bool]) -> float:
    """Returns the share of tasks whose final environment state meets the goal (paper eq. 8).

    Args:
        successes: One value per task.

    Returns:
        A fraction in [0, 1].

    Raises:
        InputError: There is no task.
    """
    _check_not_empty("successes", successes)
    return sum(map(bool, successes)) / len(successes)


def success_interval(successes: Sequence[bool], *, level: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's score interval of the success rate.

    With p successes per task and N tasks, its bounds solve |p - x| = z sqrt(x (1 - x) / N), where z is the normal quantile
    of the level (E. B. Wilson, 1927). A bootstrap would be a single point if all tasks succeed or all fail.

    Args:
        successes: One value per task.
        level: Coverage of the interval.

    Returns:
        Lower and upper bound, fractions in [0, 1].

    Raises:
        InputError: There is no task, or `level` is not inside (0, 1).
    """
    rate = success_rate(successes)
    _check_level(level)
    total = len(successes)
    z = NormalDist().inv_cdf((1 + level) / 2)
    shrunk = 1 + z * z / total
    center = (rate + z * z / (2 * total)) / shrunk
    half = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total)) / shrunk
    low = 0.0 if rate == 0 else center - half  # exact at the ends, where rounding would leave 1e-17
    high = 1.0 if rate == 1 else center + half
    return low, high


def mean_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a mean over tasks.

    Args:
        values: One number per task.
        level: Coverage of the interval.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        Lower and upper bound.

    Raises:
        InputError: There is no task, or `level` is not inside (0, 1).
    """
    return ratio_interval(values, [1] * len(values), level=level, resamples=resamples, seed=seed)


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of sum(numerators) / sum(denominators). Tasks are resampled.

    Args:
        numerators: One number per task.
        denominators: One number >= 0 per task.
        level: Coverage of the interval.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling. The same seed and number of tasks select the same tasks.

    Returns:
        Lower and upper bound. Resamples in which all denominators are 0 are ignored. NaN if this holds for all of them.

    Raises:
        InputError: There is no task, the lengths differ, or `level` is not inside (0, 1).
    """
    _check_not_empty("numerators", numerators)
    _check_level(level)
    if len(numerators) != len(denominators):
        got = f"{len(denominators)} for {len(numerators)} numerators"
        raise InputError("denominators", "one per numerator", got, "Pair them by task.")
    pairs = np.array([numerators, denominators], dtype=np.float64)  # (2, N)
    random = np.random.default_rng(seed)
    ratios: list[np.ndarray] = []
    for start in range(0, resamples, 500):  # in chunks, to bound the memory of the (resamples, N) index table
        tasks = random.integers(pairs.shape[1], size=(min(500, resamples - start), pairs.shape[1]))
        above, below = (row[tasks].sum(1) for row in pairs)
        ratios.append(above[below > 0] / below[below > 0])
    values = np.concatenate(ratios)
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def cot_match_rates(student: Sequence[Sequence[Hashable]], teacher: Sequence[Sequence[Hashable]]) -> list[float]:
    """Returns |S ∩ T| / |T| of the reasoning tokens per trajectory (CoT match, paper appendix C).

    S and T are multisets: a token counts as often as it occurs in both.

    Args:
        student: Reasoning tokens of the student per trajectory.
        teacher: Reasoning tokens of the teacher on the same tasks, in the same order and of the same tokenizer.

    Returns:
        One fraction in [0, 1] per trajectory. Trajectories without teacher reasoning are omitted.

    Raises:
        InputError: There is no trajectory, or the lengths differ.
    """
    _check_not_empty("student", student)
    if len(student) != len(teacher):
        raise InputError(
            "teacher",
            f"{len(student)} trajectories, one per trajectory of the student",
            f"{len(teacher)}",
            "Pair the trajectories by task.",
        )
    return [(Counter(s) & Counter(t)).total() / len(t) for s, t in zip(student, teacher, strict=True) if len(t) > 0]


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError("level", "a number between 0 and 1", repr(level), "0.95 is usual.")


def _check_not_empty(name: str, values: Sequence[object]) -> None:
    if len(values) == 0:
        raise InputError(name, "at least one trajectory", "none", "Run at least one task.")
