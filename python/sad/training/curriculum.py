"""Easy trajectories first: the difficulty of eq. 7, and the order in which a training run sees them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from sad.errors import InputError
from sad.training.config import CURRICULUM_UNITS


def difficulty_scores(
    reason_tokens: ArrayLike,
    act_tokens: ArrayLike,
    teacher_entropy: ArrayLike,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    units: str = "relative",
) -> NDArray[np.float64]:
    """The difficulty of n trajectories, C = alpha len(r) + beta len(a) + gamma entropy(pi_T) (eq. 7).

    The paper does not say in which units the three terms meet. Counted as they are, a few hundred tokens drown an
    entropy of two nats; so by default each term is divided by its mean over the data. Unlike standardizing, that does
    not blow up a term that hardly varies.

    Args:
        reason_tokens: (n,) supervised reasoning tokens of each trajectory.
        act_tokens: (n,) supervised action tokens.
        teacher_entropy: (n,) mean entropy of the teacher over the supervised tokens at temperature 1, nats. Left out
            of the sum where gamma is 0.
        alpha: Weight of the first term.
        beta: Weight of the second.
        gamma: Weight of the third.
        units: "relative" divides each term by its mean over the n trajectories, "raw" does not.

    Returns:
        (n,) scores; larger is harder.

    Raises:
        InputError: Lengths differ, a term that counts is not finite, or `units` is not a name.
    """
    if units not in CURRICULUM_UNITS:
        raise InputError("units", "one of " + ", ".join(CURRICULUM_UNITS), repr(units), "Choose one of these.")
    names = ("reason_tokens", "act_tokens", "teacher_entropy")
    terms = [np.asarray(x, dtype=np.float64) for x in (reason_tokens, act_tokens, teacher_entropy)]
    total = np.zeros(terms[0].shape)
    for name, term, weight in zip(names, terms, (alpha, beta, gamma)):
        if term.shape != total.shape or term.ndim != 1:
            raise InputError(name, f"one number for each of {total.shape}", str(term.shape), "Measure each trajectory.")
        if weight == 0 or not len(term):
            continue
        if not np.isfinite(term).all():
            where = f"{name} of trajectory {int(np.flatnonzero(~np.isfinite(term))[0])}"
            raise InputError(where, "a finite number", "NaN or infinity", "See whether the teacher's logits are finite.")
        mean = term.mean() if units == "relative" else 1.0
        total += weight * term / (mean or 1.0)
    return total


class CurriculumSampler(Sampler[int]):
    """Draws trajectories from easy to hard, harder ones being admitted as training goes on.

    Trajectories are sorted by score. At a progress p of the training (0 to 1) the easiest share
    `start + (1 - start) p / end` is admitted, all of them from p = `end` on. Within an epoch, which always has n draws, a
    draw takes a random one of those admitted and not yet drawn; when none is left, all that are admitted become
    available again. So an epoch in which all are admitted is a random permutation, one in which few are repeats those
    evenly, and a training of one epoch sees every trajectory exactly once, roughly in order.

    The order is a function of (scores, seed, epoch) and the numbers above alone: a run that is resumed, and every process
    of a distributed run, finds the same one. Ties in score are broken by position.

    Draws that follow each other differ in length, and a batch is as long as its longest. With `lengths`, the draws of every
    `window` batches are sorted by length, cut into batches again, and the batches shuffled: what is drawn stays, and so does
    the order from window to window. Batches are those of optimizer steps, so that the steps do not depend on how many
    processes and accumulated parts make one; these parts, being neighbours in a sorted batch, have like lengths too.

    Args:
        scores: (n,) difficulties, as `difficulty_scores` gives.
        epochs: How many epochs of n draws the training has, any number > 0.
        start: Share admitted when training begins, 0 to 1; at least one trajectory always is.
        end: Progress from which on all are admitted, above 0, at most 1.
        seed: Of the draws.
        lengths: (n,) tokens of each trajectory; None leaves the order of the draws as it is.
        batch_size: Trajectories of an optimizer step.
        window: Steps within which draws may change places.

    Raises:
        InputError: A number is out of range or a score is not finite.
    """

    def __init__(
        self,
        scores: ArrayLike,
        *,
        epochs: float,
        start: float = 0.2,
        end: float = 0.5,
        seed: int = 0,
        lengths: ArrayLike | None = None,
        batch_size: int = 1,
        window: int = 8,
    ) -> None:
        scores = np.asarray(scores, dtype=np.float64)
        if scores.ndim != 1 or not np.isfinite(scores).all():
            raise InputError("scores", "one finite number per trajectory", f"shape {scores.shape}", "See difficulty_scores.")
        ranges = {"epochs": (epochs, epochs > 0), "start": (start, 0 <= start <= 1), "end": (end, 0 < end <= 1)}
        ranges |= {"batch_size": (batch_size, batch_size >= 1), "window": (window, window >= 1)}
        for name, (value, holds) in ranges.items():
            if not holds:
                remedy = "epochs is > 0, start a share from 0 to 1, end one above 0, batch_size and window are >= 1."
                raise InputError(name, "a number in its range", repr(value), remedy)
        if lengths is not None and np.shape(lengths) != scores.shape:
            raise InputError("lengths", f"one number for each of {scores.shape}", str(np.shape(lengths)), "Count tokens.")
        self._lengths = None if lengths is None else np.asarray(lengths)
        self._batch_size, self._window = batch_size, window
        self._order: list[int] = np.argsort(scores, kind="stable").tolist()
        self._epochs, self._start, self._end, self._seed, self._epoch = epochs, start, end, seed, 0

    def __len__(self) -> int:
        return len(self._order)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch (from 0) that the next iteration gives."""
        self._epoch = epoch

    def admitted_share(self, progress: float | NDArray) -> NDArray[np.float64]:
        """Share of the trajectories admitted at a progress from 0 to 1."""
        return np.minimum(1.0, self._start + (1.0 - self._start) * np.asarray(progress) / self._end)

    def __iter__(self) -> Iterator[int]:
        draws = list(self._draws())
        if self._lengths is None:
            yield from draws
            return
        size = self._batch_size * self._window
        for first in range(0, len(draws), size):
            yield from self._grouped(draws[first : first + size], first)

    def _grouped(self, draws: list[int], first: int) -> Iterator[int]:
        """The draws of one window, whose number in the epoch is `first`; a batch that is not full stays the last."""
        by_length = np.asarray(draws)[np.argsort(self._lengths[draws], kind="stable")]
        full = len(draws) // self._batch_size * self._batch_size
        batches = by_length[:full].reshape(-1, self._batch_size)
        order = np.random.default_rng((self._seed, self._epoch, first)).permutation(len(batches))
        yield from batches[order].ravel().tolist()
        yield from by_length[full:].tolist()

    def _draws(self) -> Iterator[int]:
        n = len(self._order)
        progress = (self._epoch + np.arange(1, n + 1) / n) / self._epochs if n else np.zeros(0)
        # Rounded up, so that in a first and only epoch the pool is always ahead of the draws.
        counts = np.clip(np.ceil(n * self.admitted_share(progress) - 1e-9), 1, n).astype(np.int64).tolist()
        uniforms = np.random.default_rng((self._seed, self._epoch)).random(n).tolist()
        available: list[int] = []
        admitted = 0
        for count, uniform in zip(counts, uniforms):
            available += self._order[admitted:count]
            admitted = count
            if not available:
                available = self._order[:admitted]
            drawn = int(uniform * len(available))
            available[drawn], available[-1] = available[-1], available[drawn]
            yield available.pop()
