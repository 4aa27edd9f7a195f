"""What a step of an on-policy training is made of. Pure functions of the configuration, the step and the seed.

So a resumed run, and every process of a distributed one, computes the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sad.training.config import SADConfig

_MIX, _DRAW, _TASKS = 1, 2, 3  # one stream of random numbers per purpose


@dataclass(frozen=True)
class Schedule:
    """The schedule of a run.

    Args:
        args: The configuration.
        steps: Number of optimizer steps of the training.
        seed: Seed of the draws.
    """

    args: SADConfig
    steps: int
    seed: int

    def progress(self, step: int) -> float:
        """Returns the share of the training that is done before a step, counted from 0."""
        return step / max(self.steps, 1)

    def share(self, step: int) -> float:
        """Returns the share of the batches of a step that are the student's own."""
        start, end = self.args.on_policy_start, self.args.on_policy_share
        return start + (end - start) * min(1.0, self.progress(step) / self.args.on_policy_end)

    def rollout_of(self, step: int) -> int:
        """Returns the step at which the rollout is played that a step draws from."""
        return step - step % self.args.rollout_interval

    def plays(self, rollout: int) -> bool:
        """Whether a step between this rollout and the next one draws from it. The share is linear, so its ends decide."""
        last = rollout + self.args.rollout_interval - 1
        return max(self.share(rollout), self.share(min(last, max(self.steps - 1, rollout)))) > 0

    def prefix_share(self, step: int) -> float:
        """Returns the share of the teacher's turns that are replayed before the student acts."""
        return self.args.rollout_prefix * (1.0 - self._depth(step))

    def turns(self, step: int, most: int) -> int:
        """Returns how many turns the student may play, at most `most`."""
        least = min(most, most if self.args.rollout_turns is None else self.args.rollout_turns)
        return least + math.floor((most - least) * self._depth(step) + 0.5)

    def _depth(self, step: int) -> float:
        return min(1.0, self.progress(step) / self.args.rollout_depth_end)

    def own_batches(self, step: int, batches: int) -> list[int]:
        """Returns which of a step's batches, counted over all processes, are the student's own.

        Their number is the share times `batches`, rounded up or down at random so that its mean is exact.
        """
        generator = np.random.default_rng((self.seed, _MIX, step))
        count = min(batches, math.floor(self.share(step) * batches + generator.random()))
        return sorted(generator.permutation(batches)[:count].tolist())

    def draws(self, step: int, first: int, count: int, available: int) -> list[int]:
        """Returns `count` indices of the `available` examples of a rollout for one batch.

        The examples of a rollout are shuffled once, and its steps take one after the other, so that all are drawn once
        before any is drawn again.

        Args:
            step: The optimizer step.
            first: Number of the step's examples in earlier batches, over all processes.
            count: Examples of the batch.
            available: Number of examples.
        """
        rollout = self.rollout_of(step)
        order = np.random.default_rng((self.seed, _DRAW, rollout)).permutation(available)
        return [int(order[(first + index) % available]) for index in range(count)]

    def tasks(self, rollout: int, count: int, available: int) -> list[int]:
        """Returns the indices of the `count` tasks of a rollout. All tasks are played before any is played again."""
        begin = rollout // self.args.rollout_interval * count
        order: dict[int, np.ndarray] = {}
        chosen = []
        for position in range(begin, begin + count):
            cycle = position // available
            if cycle not in order:
                order[cycle] = np.random.default_rng((self.seed, _TASKS, cycle)).permutation(available)
            chosen.append(int(order[cycle][position % available]))
        return chosen
