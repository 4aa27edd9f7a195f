"""The episode loop that the scripted experts share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sad.envs.protocol import Env, Task
from sad.trajectories.trajectory import Trajectory


class Move(NamedTuple):
    """One turn of an expert.

    Attributes:
        reasoning: One line: the known facts, what is missing, and the conclusion.
        action: The action that follows from it, as `env.step` expects it; or a final line `Answer: ...`.
    """

    reasoning: str
    action: str


def rollout_moves(
    env: Env,
    task: Task,
    first_observation: str,
    act: Callable[[str], Move | None],
    *,
    env_name: str,
    max_steps: int,
    extra: dict[str, Any] | None = None,
    metrics: dict[str, float] | None = None,
) -> Trajectory:
    """Runs one episode with an expert and records it.

    Args:
        env: The environment, after `env.reset(task)`.
        task: The task of the episode.
        first_observation: The result of `env.reset(task)`.
        act: Maps an observation to the next move, or to None to give up.
        env_name: The `env` of the trajectory.
        max_steps: Maximum number of actions.
        extra: Further fields of the trajectory.
        metrics: Metrics of an episode without actions. None if the environment reports no metrics.

    Returns:
        The episode in the `sad` format. Its last line is the observation after the last action.
    """
    observation, lines, steps, done = first_observation, [first_observation], 0, False
    info: dict[str, Any] = {"won": False, "metrics": metrics}
    while not done and steps < max_steps and (move := act(observation)) is not None:
        observation, _, done, info = env.step(move.action)
        steps += 1
        line = move.action if move.action.startswith("Answer: ") else f"Action: {move.action}"
        lines += [f"Reasoning: {move.reasoning}", line, observation]
    record = {"type": task.type, **(extra or {}), "steps": steps, "model": "scripted expert"}
    return Trajectory(
        id=task.id,
        text="\n".join(lines) + "\n",
        format="sad",
        env=env_name,
        task=task.goal,
        success=info["won"],
        extra=record if metrics is None else record | {"metrics": info["metrics"]},
    )
