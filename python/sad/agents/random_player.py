"""An agent that chooses admissible commands at random and writes no thoughts."""

from __future__ import annotations

import copy
import random
import zlib
from collections.abc import Sequence

from sad.agents.cleaning import ACTION
from sad.agents.episode import EndReason, EpisodeRunner, RolloutConfig
from sad.envs.protocol import Env, Task
from sad.trajectories.trajectory import Trajectory


def collect_random(env: Env, tasks: Sequence[Task], *, max_steps: int = 50, seed: int = 0) -> list[Trajectory]:
    """Plays one episode per task with random admissible commands.

    The transcripts show the language of an environment without a policy. A model that is trained on all their tokens knows
    the words and the answers of the environment, as a pretrained model would.

    Args:
        env: The environment. Every episode uses a shallow copy.
        tasks: The tasks.
        max_steps: Maximum number of actions per episode.
        seed: Seed of the choices. Those of a task depend on it and the task only.

    Returns:
        One trajectory per task.
    """
    config = RolloutConfig(max_steps=max_steps, max_repeats=max_steps)
    return [_play(copy.copy(env), task, config, seed) for task in tasks]


def _play(env: Env, task: Task, config: RolloutConfig, seed: int) -> Trajectory:
    rng = random.Random(zlib.crc32(f"{seed}/{task.id}".encode()))
    runner = EpisodeRunner(env, task, config, seed)
    while not runner.done:
        if not runner.admissible:
            runner.end(EndReason.NO_ACTION)
            break
        runner.step(f"{ACTION} {rng.choice(list(runner.admissible))}\n")
    return runner.episode.to_trajectory(keep_ids=False)
