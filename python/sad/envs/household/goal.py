"""Goals: when a household task is done, judged by the state of the world."""

from __future__ import annotations

from typing import NamedTuple

from sad.envs.household.world import World

SIMPLE = "pick_and_place_simple"
LIGHT = "look_at_obj_in_light"
CLEAN = "pick_clean_then_place_in_recep"
HEAT = "pick_heat_then_place_in_recep"
COOL = "pick_cool_then_place_in_recep"
TWO = "pick_two_obj_and_place"
TASK_TYPES = (SIMPLE, LIGHT, CLEAN, HEAT, COOL, TWO)

# two ways to ask for each, in ALFWorld's words
TEMPLATES = {
    SIMPLE: ("put a {thing} in {place}.", "put some {thing} on {place}."),
    LIGHT: ("look at {thing} under the {place}.", "examine the {thing} with the {place}."),
    CLEAN: ("put a clean {thing} in {place}.", "clean some {thing} and put it in {place}."),
    HEAT: ("put a hot {thing} in {place}.", "heat some {thing} and put it in {place}."),
    COOL: ("put a cool {thing} in {place}.", "cool some {thing} and put it in {place}."),
    TWO: ("put two {thing} in {place}.", "find two {thing} and put them in {place}."),
}
PREAMBLE = "Your task is to: "


class Goal(NamedTuple):
    """What has to hold in the end.

    Attributes:
        type: One of `TASK_TYPES`.
        thing: Kind of the object that matters.
        place: Kind of the receptacle it ends in or on; for `look_at_obj_in_light`, the kind of lamp.
    """

    type: str
    thing: str
    place: str

    def holds(self, world: World) -> bool:
        """Whether the goal is reached in this state."""
        things = world.scene.things
        if self.type == LIGHT:
            if world.held is None or things[world.held].kind != self.thing:
                return False
            near = {t for r in world.here() for t in world.inside[r]}
            return any(things[t].kind == self.place for t in world.toggled & near)
        treated = {CLEAN: world.clean, HEAT: world.hot, COOL: world.cool}.get(self.type)
        needed = 2 if self.type == TWO else 1
        for receptacle, contents in zip(world.scene.receptacles, world.inside):
            if receptacle.kind == self.place:
                fitting = [t for t in contents if things[t].kind == self.thing and (treated is None or t in treated)]
                if len(fitting) >= needed:
                    return True
        return False
