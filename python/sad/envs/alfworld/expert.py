"""The household's expert with a sense of where things are in ALFWorld's rooms."""

from __future__ import annotations

from collections.abc import Sequence

from sad.envs.alfworld.object_locations import OFTEN, WHEREABOUTS
from sad.envs.household import expert as household
from sad.envs.household.reading import kind_of
from sad.envs.protocol import Env, Task
from sad.trajectories.trajectory import Trajectory


class AlfworldExpert(household.HouseholdExpert):
    """Searches in the order in which a look is likeliest to find the thing, as counted in the training games."""

    def _homes(self, kind: str) -> Sequence[str]:
        return tuple(WHEREABOUTS.get(kind, ()))

    def _usual(self, kind: str) -> Sequence[str]:
        places = WHEREABOUTS.get(kind, {})
        return [place for place in places if places[place] >= OFTEN] or list(places)

    def _chance(self, kind: str, place: str) -> str:
        chance = WHEREABOUTS.get(kind, {}).get(kind_of(place))
        if chance is None:
            return ". The usual places are done"
        often = "often" if chance >= OFTEN else "sometimes"
        return f". {household.indefinite(kind).capitalize()} is {often} {household.where(kind_of(place))}"


def play_expert(env: Env, task: Task, *, max_steps: int = 60) -> Trajectory:
    """Plays one task of `alfworld` or `alfworld-official` with the expert, who sees what an agent sees.

    Args:
        env: The world.
        task: One of its tasks.
        max_steps: Actions after which the episode is given up.

    Returns:
        The episode in the `sad` format; its last line is the answer to the last action.
    """
    return household.play_expert(env, task, max_steps=max_steps, expert=AlfworldExpert, world="alfworld")
