"""The scripted expert of ALFWorld: the household expert with the object locations of the training games."""

from __future__ import annotations

from collections.abc import Sequence

from sad.envs.alfworld.object_locations import OBJECT_LOCATIONS, OFTEN
from sad.envs.household import expert as household
from sad.envs.household.text import kind_of
from sad.envs.protocol import Env, Task
from sad.trajectories.trajectory import Trajectory


class AlfworldExpert(household.HouseholdExpert):
    """Searches places in the order of `OBJECT_LOCATIONS` and names the likelihood in its reasoning."""

    def _usual_places(self, kind: str) -> Sequence[str]:
        return tuple(OBJECT_LOCATIONS.get(kind, ()))

    def _likely_places(self, kind: str) -> Sequence[str]:
        scores = OBJECT_LOCATIONS.get(kind, {})
        return [place for place in scores if scores[place] >= OFTEN] or list(scores)

    def _why_here(self, kind: str, place: str) -> str:
        score = OBJECT_LOCATIONS.get(kind, {}).get(kind_of(place))
        if score is None:
            return ". The usual places are done"
        often = "often" if score >= OFTEN else "sometimes"
        return f". {household.indefinite(kind).capitalize()} is {often} {household.where(kind_of(place))}"


def rollout_expert(env: Env, task: Task, *, max_steps: int = 60) -> Trajectory:
    """Runs one episode of `alfworld` or `alfworld-official` with the expert, which sees only what an agent sees.

    Args:
        env: The environment.
        task: One of its tasks.
        max_steps: Maximum number of actions.

    Returns:
        The episode in the `sad` format. Its last line is the answer to the last action.
    """
    return household.rollout_expert(env, task, max_steps=max_steps, expert=AlfworldExpert, env_name="alfworld")
