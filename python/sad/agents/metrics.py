"""The four figures by which agents are compared (appendix C of the paper), as functions of plain sequences.

Rates are fractions in [0, 1]; tables multiply by 100.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from sad.errors import InputError


def success_rate(successes: Sequence[bool]) -> float:
    """Share of tasks whose final state of the environment meets the goal (paper eq. 8).

    Args:
        successes: One verdict per task.

    Returns:
        A fraction in [0, 1].

    Raises:
        InputError: If there is no task.
    """
    _refuse_empty("successes", successes)
    return sum(map(bool, successes)) / len(successes)


def success_interval(
    successes: Sequence[bool], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the success rate: tasks are drawn again with replacement.

    Every resample's number of successes is binomial with the observed rate, so it is drawn as one number.

    Args:
        successes: One verdict per task.
        level: Coverage of the interval.
        resamples: Number of bootstrap samples.
        seed: Seed of the draws; the same seed gives the same interval.

    Returns:
        Lower and upper end, fractions in [0, 1]. With no success or no failure at all both ends are
        the rate itself: a bootstrap cannot see what the sample does not hold.

    Raises:
        InputError: If there is no task or `level` is not inside (0, 1).
    """
    rate = success_rate(successes)
    _check_level(level)
    total = len(successes)
    drawn = np.random.default_rng(seed).binomial(total, rate, size=resamples) / total
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def mean_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over tasks.

    Args:
        values: One number per task.
        level: Coverage of the interval.
        resamples: Number of bootstrap samples.
        seed: Seed of the draws.

    Returns:
        Lower and upper end.

    Raises:
        InputError: If there is no task or `level` is not inside (0, 1).
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
    """Percentile bootstrap interval of sum(numerators) / sum(denominators): tasks are drawn again with replacement.

    Args:
        numerators: One number per task.
        denominators: One number per task, none below 0.
        level: Coverage of the interval.
        resamples: Number of bootstrap samples.
        seed: Seed of the draws; the same seed and number of tasks draw the same tasks.

    Returns:
        Lower and upper end; draws whose denominators are all 0 are left out, NaN if all are.

    Raises:
        InputError: If there is no task, the two differ in length or `level` is not inside (0, 1).
    """
    _refuse_empty("numerators", numerators)
    _check_level(level)
    if len(numerators) != len(denominators):
        got = f"{len(denominators)} for {len(numerators)} numerators"
        raise InputError("denominators", "one for each numerator", got, "Pair them by task first.")
    pairs = np.array([numerators, denominators], dtype=np.float64)  # (2, N)
    random = np.random.default_rng(seed)
    ratios: list[np.ndarray] = []
    for drawn in range(0, resamples, 500):  # in parts: all draws of many tasks at once are a large table
        tasks = random.integers(pairs.shape[1], size=(min(500, resamples - drawn), pairs.shape[1]))
        above, below = (row[tasks].sum(1) for row in pairs)
        ratios.append(above[below > 0] / below[below > 0])
    found = np.concatenate(ratios)
    if not len(found):
        return math.nan, math.nan
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def average_reasoning_length(reasoning: Sequence[Sequence[Hashable]]) -> float:
    """Tokens of a trajectory's reasoning, averaged over trajectories (paper eq. 9).

    Args:
        reasoning: Per trajectory the tokens of all its reasoning.

    Returns:
        Tokens per trajectory.

    Raises:
        InputError: If there is no trajectory.
    """
    _refuse_empty("reasoning", reasoning)
    return sum(map(len, reasoning)) / len(reasoning)


def cot_match_rate(student: Sequence[Sequence[Hashable]], teacher: Sequence[Sequence[Hashable]]) -> float:
    """How much of the teacher's reasoning the student says too: mean of |S ∩ T| / |T| (paper appendix C).

    The intersection is that of multisets: a token counts as often as it occurs on both sides.

    Args:
        student: Per trajectory the student's reasoning tokens.
        teacher: The teacher's on the same tasks, in the same order and of the same tokenizer.

    Returns:
        A fraction in [0, 1]. Trajectories in which the teacher does not reason have no rate and are
        left out; NaN if none remains.

    Raises:
        InputError: If the two differ in length or are empty.
    """
    rates = cot_match_rates(student, teacher)
    return sum(rates) / len(rates) if rates else math.nan


def cot_match_rates(student: Sequence[Sequence[Hashable]], teacher: Sequence[Sequence[Hashable]]) -> list[float]:
    """|S ∩ T| / |T| of each trajectory in which the teacher reasons; arguments and errors of `cot_match_rate`."""
    _refuse_empty("student", student)
    if len(student) != len(teacher):
        raise InputError(
            "teacher",
            f"{len(student)} trajectories, one for each of the student's",
            f"{len(teacher)}",
            "Pair the trajectories by task first.",
        )
    return [(Counter(s) & Counter(t)).total() / len(t) for s, t in zip(student, teacher, strict=True) if len(t) > 0]


def average_steps(steps: Sequence[int]) -> float:
    """Episode latency: reasoning and action steps per episode, averaged (paper eq. 11).

    Args:
        steps: Per episode the number of steps, a reasoning line and an action line being one each.

    Returns:
        Steps per episode.

    Raises:
        InputError: If there is no episode.
    """
    _refuse_empty("steps", steps)
    return sum(steps) / len(steps)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError("level", "a number between 0 and 1", repr(level), "0.95 is usual.")


def _refuse_empty(where: str, values: Sequence[object]) -> None:
    if len(values) == 0:
        raise InputError(where, "at least one trajectory", "none", "Play at least one task.")
