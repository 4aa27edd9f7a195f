"""Trajectories for training and for evaluation: played by a language model, or by a world's scripted expert."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sad.agents.episode import Episode
from sad.agents.rollout import play
from sad.envs.protocol import Env, Task
from sad.errors import InputError
from sad.trajectories.trajectory import Trajectory

if TYPE_CHECKING:
    from sad.agents.endpoint import Endpoint


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
    done: Collection[str] = (),
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
        done: Ids of trajectories that are there already and not played again.
        on_trajectory: Called with every finished trajectory.
        extra: Further fields of every record, such as the model's name.
        **limits: Passed on to `play`.

    Returns:
        One trajectory per task and sample, task by task in each round of samples.

    Raises:
        InputError: If `samples` is below 1, or greedy episodes are asked for more than once; and as `play` does.
    """
    episodes = partial(play, model, tokenizer, env, **limits)
    return _collect(episodes, tasks, env_name, samples, temperature, seed, done, on_trajectory, extra or {})


def collect_endpoint(
    endpoint: Endpoint,
    env: Env,
    tasks: Sequence[Task],
    *,
    env_name: str | None = None,
    samples: int = 1,
    temperature: float | None = None,
    seed: int = 0,
    done: Collection[str] = (),
    on_trajectory: Callable[[Trajectory], None] | None = None,
    extra: dict[str, Any] | None = None,
    **limits: Any,
) -> list[Trajectory]:
    """As `collect`, with a model behind a URL; `limits` go to `play_endpoint`.

    Raises:
        InputError: As `collect` and `play_endpoint` do. What was finished until then has been handed to `on_trajectory`.
    """
    from sad.agents.endpoint import play_endpoint

    episodes = partial(play_endpoint, endpoint, env, **limits)
    return _collect(episodes, tasks, env_name, samples, temperature, seed, done, on_trajectory, extra or {})


def sampled_id(task: Task, sample: int) -> str:
    """The id of a task's k-th sample: the task's own for the first, with `#k` for the others."""
    return f"{task.id}#{sample}" if sample else task.id


def _collect(
    episodes: Callable[..., list[Episode]],
    tasks: Sequence[Task],
    env_name: str | None,
    samples: int,
    temperature: float | None,
    seed: int,
    done: Collection[str],
    on_trajectory: Callable[[Trajectory], None] | None,
    extra: dict[str, Any],
) -> list[Trajectory]:
    if samples < 1:
        raise InputError("samples", "at least 1", str(samples), "Ask for one or more.")
    if temperature is None:
        temperature = 0.0 if samples == 1 else 0.2
    if samples > 1 and temperature == 0:
        raise InputError("temperature", "above 0 for several samples", "0", "Greedy episodes are all the same.")
    jobs = [(task, k) for k in range(samples) for task in tasks if sampled_id(task, k) not in done]

    def record(episode: Episode) -> Trajectory:
        trajectory = episode.trajectory(env_name, **extra, temperature=temperature, seed=episode.seed)
        trajectory.id = sampled_id(episode.task, episode.seed - seed)
        return trajectory

    played = episodes(
        [task for task, _ in jobs],
        temperature=temperature,
        seed=[seed + sample for _, sample in jobs],
        on_episode=None if on_trajectory is None else lambda episode: on_trajectory(record(episode)),
    )
    return [record(episode) for episode in played]


def collect_expert(
    env: Env,
    tasks: Sequence[Task],
    *,
    done: Collection[str] = (),
    on_trajectory: Callable[[Trajectory], None] | None = None,
    max_steps: int = 60,
) -> list[Trajectory]:
    """Lets the world's scripted expert (`env.expert`) play tasks.

    Args:
        env: A world that has an expert.
        tasks: The tasks to play.
        done: Ids of tasks that are not played again.
        on_trajectory: Called with every finished trajectory.
        max_steps: Actions per episode.

    Returns:
        One trajectory per task.

    Raises:
        InputError: If the world has no expert.
    """
    expert = getattr(env, "expert", None)
    if expert is None:
        raise InputError("model", "a folder with a model", "'expert'", "This world has no scripted expert.")
    trajectories = []
    for task in tasks:
        if task.id not in done:
            trajectories.append(expert(env, task, max_steps=max_steps))
            if on_trajectory is not None:
                on_trajectory(trajectories[-1])
    return trajectories
