"""A rollout without a trainer."""

from __future__ import annotations

from types import SimpleNamespace

from sad.on_policy.rollouts import Rollout
from sad.on_policy.schedule import Schedule
from tests.sad.on_policy.test_schedule import DEFAULTS


def rollout_of(step: int = 0, rank: int = 0, processes: int = 1, max_length: int = 128, **fields) -> Rollout:
    """Returns the rollout of a step in a training of 100 steps; keywords are fields of the configuration."""
    episodes = fields.pop("episodes", 6)
    args = SimpleNamespace(**DEFAULTS | {"rollout_episodes": episodes} | fields)
    return Rollout(step, rank, processes, Schedule(args, 100, 0), max_length)
