"""Collection of trajectories from a language model, an endpoint, or the scripted expert of an environment."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sad.agents.episode import Episode
from sad.agents.rollout import rollout
from sad.envs.protocol import Env, Task
from sad.errors import InputError
from sad.trajectories.trajectory import Trajectory

if TYPE_CHECKING:
    from sad.agents.endpoint import Endpoint


def select_tasks(env: Env, count: int | None) -> Sequence[Task]:
    """Returns the first `count` tasks of an environment, or all tasks if `count` is None.

    Raises:
        InputError: `count` is below 1 or above the number of tasks.
    """
    if count is None:
        return env.tasks
    if not 1 <= count <= len(env.tasks):
        expected = f"1 to {len(env.tasks)}, the number of tasks of this environment"
        raise InputError("tasks", expected, str(count), "Use a number in this range.")
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
    skip_ids: Collection[str] = (),
    on_trajectory: Callable[[Trajectory], None] | None = None,
    extra: dict[str, Any] | None = None,
    keep_ids: bool = True,
    **rollout_options: Any,
) -> list[Trajectory]:
    """Runs episodes with a language model and returns them as trajectories, both successes and failures.

    Args:
        model: Causal language model of `transformers`.
        tokenizer: Fast tokenizer of the model.
        env: The environment.
        tasks: The tasks.
        env_name: Name of the environment in the trajectories.
        samples: Number of episodes per task. Sample k (from 0) uses the seed `seed + k`. For k > 0 its id is the id of
            the task with `#k` appended.
        temperature: Sampling temperature. None: 0 (greedy) for one sample, 0.2 (the paper's value) for several.
        seed: Seed of the sampling.
        skip_ids: Ids of trajectories to skip because they exist already.
        on_trajectory: Called with every finished trajectory.
        extra: Additional fields of every trajectory, such as the name of the model.
        keep_ids: Whether the trajectories keep the token ids that the model read and wrote (`Trajectory.kept_tokens`), so
            that a training on them needs no tokenizer run.
        **rollout_options: Further arguments of `sad.rollout`.

    Returns:
        One trajectory per sample and task: first sample 0 of every task, then sample 1, and so on.

    Raises:
        InputError: `samples` is below 1, several samples are greedy, or `sad.rollout` rejects an argument.
    """
    run = partial(rollout, model, tokenizer, env, **rollout_options)
    return _collect(run, tasks, env_name, samples, temperature, seed, skip_ids, on_trajectory, extra or {}, keep_ids)


def collect_endpoint(
    endpoint: Endpoint,
    env: Env,
    tasks: Sequence[Task],
    *,
    env_name: str | None = None,
    samples: int = 1,
    temperature: float | None = None,
    seed: int = 0,
    skip_ids: Collection[str] = (),
    on_trajectory: Callable[[Trajectory], None] | None = None,
    extra: dict[str, Any] | None = None,
    **rollout_options: Any,
) -> list[Trajectory]:
    """Does the same as `collect` with a model behind an endpoint. `rollout_options` go to `rollout_endpoint`.

    Raises:
        InputError: An argument is invalid, or the endpoint fails. `on_trajectory` has received all episodes that
            finished before the failure.
    """
    from sad.agents.endpoint import rollout_endpoint

    run = partial(rollout_endpoint, endpoint, env, **rollout_options)
    return _collect(run, tasks, env_name, samples, temperature, seed, skip_ids, on_trajectory, extra or {})


def sample_id(task: Task, sample: int) -> str:
    """Returns the id of a sample: the id of the task for sample 0, with `#k` appended for sample k > 0."""
    return f"{task.id}#{sample}" if sample else task.id


def _collect(
    run: Callable[..., list[Episode]],
    tasks: Sequence[Task],
    env_name: str | None,
    samples: int,
    temperature: float | None,
    seed: int,
    skip_ids: Collection[str],
    on_trajectory: Callable[[Trajectory], None] | None,
    extra: dict[str, Any],
    keep_ids: bool = True,
) -> list[Trajectory]:
    if samples < 1:
        raise InputError("samples", "at least 1", str(samples), "Use 1 or more.")
    if temperature is None:
        temperature = 0.0 if samples == 1 else 0.2
    if samples > 1 and temperature == 0:
        raise InputError("temperature", "above 0 for several samples", "0", "Greedy episodes are all the same.")
    jobs = [(task, k) for k in range(samples) for task in tasks if sample_id(task, k) not in skip_ids]

    def to_trajectory(episode: Episode) -> Trajectory:
        trajectory = episode.to_trajectory(env_name, keep_ids=keep_ids, **extra, temperature=temperature, seed=episode.seed)
        trajectory.id = sample_id(episode.task, episode.seed - seed)
        return trajectory

    episodes = run(
        [task for task, _ in jobs],
        temperature=temperature,
        seed=[seed + sample for _, sample in jobs],
        on_episode=None if on_trajectory is None else lambda episode: on_trajectory(to_trajectory(episode)),
    )
    return [to_trajectory(episode) for episode in episodes]


def collect_expert(
    env: Env,
    tasks: Sequence[Task],
    *,
    skip_ids: Collection[str] = (),
    on_trajectory: Callable[[Trajectory], None] | None = None,
    max_steps: int = 60,
) -> list[Trajectory]:
    """Runs episodes with the scripted expert of an environment (`env.expert`).

    Args:
        env: An environment with an expert.
        tasks: The tasks.
        skip_ids: Ids of tasks to skip.
        on_trajectory: Called with every finished trajectory.
        max_steps: Maximum number of actions per episode.

    Returns:
        One trajectory per task.

    Raises:
        InputError: The environment has no expert.
    """
    expert = getattr(env, "expert", None)
    if expert is None:
        raise InputError("model", "a folder with a model", "'expert'", "This environment has no scripted expert.")
    trajectories = []
    for task in tasks:
        if task.id not in skip_ids:
            trajectories.append(expert(env, task, max_steps=max_steps))
            if on_trajectory is not None:
                on_trajectory(trajectories[-1])
    return trajectories
