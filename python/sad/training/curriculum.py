"""The curriculum: the difficulty of a trajectory (paper eq. 7), and the order of the trajectories in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from sad.errors import InputError
from sad.training.config import CURRICULUM_UNITS, SADConfig
from sad.training.difficulty import Measures


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
    """Computes the difficulty of n trajectories, C = alpha len(r) + beta len(a) + gamma entropy(pi_T) (paper eq. 7).

    The paper does not state the units of the three terms. A few hundred tokens would dominate an entropy of two nats, so by
    default each term is divided by its mean over the data. Standardizing instead would amplify a term that hardly varies.

    Args:
        reason_tokens: (n,) supervised reasoning tokens per trajectory.
        act_tokens: (n,) supervised action tokens per trajectory.
        teacher_entropy: (n,) mean entropy of the teacher per supervised token at temperature 1, in nats. Unused if gamma
            is 0.
        alpha: Weight of the first term.
        beta: Weight of the second term.
        gamma: Weight of the third term.
        units: "relative" divides each term by its mean over the n trajectories, "raw" does not.

    Returns:
        (n,) scores. A larger score is harder.

    Raises:
        InputError: Lengths differ, a term with a weight is not finite, or `units` is unknown.
    """
    if units not in CURRICULUM_UNITS:
        raise InputError("units", "one of " + ", ".join(CURRICULUM_UNITS), repr(units), "Choose one of these.")
    names = ("reason_tokens", "act_tokens", "teacher_entropy")
    terms = [np.asarray(x, dtype=np.float64) for x in (reason_tokens, act_tokens, teacher_entropy)]
    total = np.zeros(terms[0].shape)
    for name, term, weight in zip(names, terms, (alpha, beta, gamma)):
        if term.shape != total.shape or term.ndim != 1:
            remedy = "Pass one number per trajectory."
            raise InputError(name, f"shape {total.shape}, like reason_tokens", str(term.shape), remedy)
        if weight == 0 or not len(term):
            continue
        if not np.isfinite(term).all():
            where = f"{name} of trajectory {int(np.flatnonzero(~np.isfinite(term))[0])}"
            raise InputError(where, "a finite number", "NaN or infinity", "Check that the teacher's logits are finite.")
        mean = term.mean() if units == "relative" else 1.0
        total += weight * term / (mean or 1.0)
    return total


class CurriculumSampler(Sampler[int]):
    """Draws easy trajectories first and admits harder ones as training proceeds.

    Trajectories are sorted by score. At a training progress p (0 to 1) the easiest share `start + (1 - start) p / end` is
    admitted, and all are admitted from p = `end` on. An epoch has n draws. A draw picks a random admitted trajectory that
    this epoch has not drawn yet. If none is left, all admitted trajectories become available again. So

    * an epoch that starts with all admitted is a random permutation;
    * an epoch with few admitted repeats those evenly;
    * a training of one epoch draws every trajectory exactly once, roughly in order.

    The order is a pure function of the arguments and the epoch, so a resumed run and every process of a distributed run
    compute the same one. Equal scores are ordered by position.

    A batch is padded to its longest trajectory. With `lengths`, the draws of every `window` steps are sorted by length and
    cut into steps, and the steps are shuffled. The set of draws in each window stays the same. A step is an optimizer step:
    its accumulated and distributed parts are neighbours in length, so the steps do not depend on how many parts there are.

    Args:
        scores: (n,) difficulties from `difficulty_scores`.
        epochs: Number of epochs of n draws in the training, > 0; may be fractional.
        start: Share admitted at the start, 0 to 1. At least one trajectory is admitted.
        end: Progress from which all are admitted, above 0, at most 1.
        seed: Random seed of the draws.
        lengths: (n,) tokens per trajectory. Default: keep the order of the draws.
        batch_size: Trajectories per optimizer step.
        window: Steps within which draws are reordered.

    Raises:
        InputError: A number is out of range, or a score is not finite.
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
            remedy = "Compute them with difficulty_scores."
            raise InputError("scores", "one finite number per trajectory", f"shape {scores.shape}", remedy)
        ranges = {
            "epochs": (epochs > 0, epochs, "a number > 0"),
            "start": (0 <= start <= 1, start, "a share from 0 to 1"),
            "end": (0 < end <= 1, end, "a share above 0, at most 1"),
            "batch_size": (batch_size >= 1, batch_size, "a whole number >= 1"),
            "window": (window >= 1, window, "a whole number >= 1"),
        }
        for name, (holds, value, expected) in ranges.items():
            if not holds:
                raise InputError(name, expected, repr(value), "Choose a value in that range.")
        if lengths is not None and np.shape(lengths) != scores.shape:
            remedy = "Pass the number of tokens of each trajectory."
            raise InputError("lengths", f"shape {scores.shape}, like scores", str(np.shape(lengths)), remedy)
        self._lengths = None if lengths is None else np.asarray(lengths)
        self._batch_size, self._window = batch_size, window
        self._order: list[int] = np.argsort(scores, kind="stable").tolist()
        self._epochs, self._start, self._end, self._seed, self._epoch = epochs, start, end, seed, 0

    def __len__(self) -> int:
        return len(self._order)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, from 0, of the next iteration."""
        self._epoch = epoch

    def admitted_share(self, progress: float | NDArray) -> NDArray[np.float64]:
        """Returns the share of the trajectories that are admitted at a progress from 0 to 1."""
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
        """Yields the draws of the window that starts at draw `first`. A batch that is not full stays last."""
        by_length = np.asarray(draws)[np.argsort(self._lengths[draws], kind="stable")]
        full = len(draws) // self._batch_size * self._batch_size
        batches = by_length[:full].reshape(-1, self._batch_size)
        order = np.random.default_rng((self._seed, self._epoch, first)).permutation(len(batches))
        yield from batches[order].ravel().tolist()
        yield from by_length[full:].tolist()

    def _draws(self) -> Iterator[int]:
        n = len(self._order)
        progress = (self._epoch + np.arange(1, n + 1) / n) / self._epochs if n else np.zeros(0)
        # Rounding up keeps the pool ahead of the draws if the training has a single epoch.
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


def curriculum_sampler(args: SADConfig, measures: Measures, lengths: Sequence[int], batch_size: int) -> CurriculumSampler:
    """Builds the sampler of a training run.

    Args:
        args: The configuration.
        measures: Terms of the difficulty of n trajectories.
        lengths: (n,) tokens per trajectory.
        batch_size: Trajectories per optimizer step, over all processes.
    """
    entropy = measures.teacher_entropy
    scores = difficulty_scores(
        measures.reason_tokens,
        measures.act_tokens,
        measures.reason_tokens * 0.0 if entropy is None else entropy,
        alpha=args.curriculum_alpha,
        beta=args.curriculum_beta,
        gamma=args.curriculum_gamma,
        units=args.curriculum_units,
    )
    epochs = float(args.num_train_epochs)
    if args.max_steps > 0:
        epochs = args.max_steps / -(-len(lengths) // batch_size)
    return CurriculumSampler(
        scores,
        epochs=epochs,
        start=args.curriculum_start,
        end=args.curriculum_end,
        seed=args.seed if args.data_seed is None else args.data_seed,
        lengths=lengths,
        batch_size=batch_size,
        window=args.curriculum_window,
    )
