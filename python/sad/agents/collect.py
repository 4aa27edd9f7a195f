"""Trajectories for training and for evaluation: played by a language model, or by a world's scripted expert."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sad.agents.envs.household.env import HouseholdEnv
from sad.agents.envs.household.expert import play_expert
from sad.agents.envs.protocol import Env, Task
from sad.agents.play import play
from sad.errors import InputError
from sad.trajectories.trajectory import Trajectory


def choose_tasks(env: Env, count: int | None) -> Sequence[Task]:
    """The first `count` tasks of a world, all if None.

    Raises:
        InputError: If the world has fewer, or `count` is below 1.
    """
    if count is None:
        return env.tasks
    if not 1 <= count <= len(env.tasks):
        raise InputError("tasks", f"1 to {len(env.tasks)}, what this world offers", str(count), "Ask for fewer.")
    return env.tasks[:count]


def collect(
    model: Any,
    tokenizer: Any,
    env: Env,
    tasks: Sequence[Task],
    *,
    env_name: str | None = None,
    samples: int = 1,
    temperature: float | None = None,
    seed: int = 0,
    on_trajectory: Callable[[Trajectory], None] | None = None,
    extra: dict[str, Any] | None = None,
    **limits: Any,
) -> list[Trajectory]:
    """Lets a language model play tasks and keeps what it wrote, successes and failures alike.

    Args:
        model: Causal language model.
        tokenizer: Its fast tokenizer.
        env: The world.
        tasks: The tasks to play.
        env_name: What the records call the world.
        samples: Episodes per task; the k-th (from 0) is sampled with seed `seed + k`, and from the second
            on `#k` is added to the id.
        temperature: Of the sampling. None: greedy for one sample, 0.2 (the paper's) for several.
        seed: Of the sampling.
        on_trajectory: Called with every finished trajectory.
        extra: Further fields of every record, such as the model's name.
        **limits: Passed on to `play`.

    Returns:
        One trajectory per task and sample, task by task in each round of samples.

    Raises:
        InputError: If `samples` is below 1, or greedy episodes are asked for more than once; and as `play` does.
    """
    if samples < 1:
        raise InputError("samples", "at least 1", str(samples), "Ask for one or more.")
    if temperature is None:
        temperature = 0.0 if samples == 1 else 0.2
    if samples > 1 and temperature == 0:
        raise InputError("temperature", "above 0 for several samples", "0", "Greedy episodes are all the same.")
    collected: list[Trajectory] = []
    for sample in range(samples):

        def record(episode: Any, sample: int = sample) -> Trajectory:
            trajectory = episode.trajectory(env_name, **(extra or {}))
            trajectory.id += f"#{sample}" if sample else ""
            return trajectory

        episodes = play(
            model,
            tokenizer,
            env,
            tasks,
            temperature=temperature,
            seed=seed + sample,
            on_episode=None if on_trajectory is None else lambda episode: on_trajectory(record(episode)),
            **limits,
        )
        collected += map(record, episodes)
    return collected


def collect_expert(
    env: Env, tasks: Sequence[Task], *, on_trajectory: Callable[[Trajectory], None] | None = None, max_steps: int = 60
) -> list[Trajectory]:
    """Lets the world's scripted expert play tasks.

    Args:
        env: A world that has an expert: the household.
        tasks: The tasks to play.
        on_trajectory: Called with every finished trajectory.
        max_steps: Actions per episode.

    Returns:
        One trajectory per task.

    Raises:
        InputError: If the world has no expert.
    """
    if not isinstance(env, HouseholdEnv):
        raise InputError("model", "a folder with a model", "'expert'", "Only the household has a scripted expert.")
    trajectories = []
    for task in tasks:
        trajectories.append(play_expert(env, task, max_steps=max_steps))
        if on_trajectory is not None:
            on_trajectory(trajectories[-1])
    return trajectories
