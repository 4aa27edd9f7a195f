"""A household game: a task, the scene at its start, the goal, and the texts that differ between games. All immutable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from sad.envs.protocol import Task

SIMPLE = "pick_and_place_simple"
LIGHT = "look_at_obj_in_light"
CLEAN = "pick_clean_then_place_in_recep"
HEAT = "pick_heat_then_place_in_recep"
COOL = "pick_cool_then_place_in_recep"
TWO = "pick_two_obj_and_place"
TASK_TYPES = (SIMPLE, LIGHT, CLEAN, HEAT, COOL, TWO)

# The two instructions that ALFWorld has for each task type.
GOAL_TEMPLATES = {
    SIMPLE: ("put a {object} in {target}.", "put some {object} on {target}."),
    LIGHT: ("look at {object} under the {target}.", "examine the {object} with the {target}."),
    CLEAN: ("put a clean {object} in {target}.", "clean some {object} and put it in {target}."),
    HEAT: ("put a hot {object} in {target}.", "heat some {object} and put it in {target}."),
    COOL: ("put a cool {object} in {target}.", "cool some {object} and put it in {target}."),
    TWO: ("put two {object} in {target}.", "find two {object} and put them in {target}."),
}
GOAL_PREFIX = "Your task is to: "


class Receptacle(NamedTuple):
    """A place that holds objects.

    Attributes:
        name: Kind and number, such as `cabinet 2`.
        kind: Kind, such as `cabinet`.
        location: Number of the location where the agent stands to reach it. Several receptacles can share a location.
        openable: Whether it can be opened and closed.
    """

    name: str
    kind: str
    location: int
    openable: bool


class Object(NamedTuple):
    """An object.

    Attributes:
        name: Kind and number, such as `mug 1`.
        kind: Kind, such as `mug`.
        traits: A subset of `pickupable cleanable heatable coolable toggleable sliceable hollow`. A hollow object can
            contain others.
    """

    name: str
    kind: str
    traits: frozenset[str]


class Goal(NamedTuple):
    """The condition that solves a task. `HouseholdState.satisfies` evaluates it.

    Attributes:
        type: One of `TASK_TYPES`.
        object: Kind of the object.
        target: Kind of the receptacle that must contain the object. For `look_at_obj_in_light`, the kind of lamp.
    """

    type: str
    object: str
    target: str


class GameTexts(NamedTuple):
    """The texts that differ between releases of the ALFWorld games.

    Attributes:
        put: The command that places an object, with `{object}` and `{receptacle}`.
        put_answer: The answer to it, with the same fields.
        arrival: The beginning of the answer to `go to`, with `{receptacle}` and `{location}` (a number).
        help: The answer to `help`, which is then an admissible command. Empty if the game has no such command.
    """

    put: str = "put {object} in/on {receptacle}"
    put_answer: str = "You put the {object} in/on the {receptacle}."
    arrival: str = ""
    help: str = ""


REACT_TEXTS = GameTexts()  # as in ReAct-style transcripts
ALFWORLD_TEXTS = GameTexts(arrival="You arrive at loc {location}. ")  # as in the ALFWorld games before version 0.4


@dataclass(frozen=True)
class Scene:
    """The start state of a game. All fields refer to receptacles and objects by index.

    Attributes:
        receptacles: In the order of the room description.
        objects: In the order in which observations list them.
        contents: For each receptacle, the indices of the objects in or on it. Two receptacles can contain one object.
        can_contain: Maps a receptacle kind to the object kinds that can be put there.
        start: The location where the agent begins. Usually, no receptacle is at this location.
        opened: Receptacles that are open at the start.
        cool: Objects that are cool at the start.
        reachable_from: For each object, the locations from which a knife reaches it. None means the locations of the
            receptacles that contain the object.
        object_contents: Maps a hollow object to the objects in it.
    """

    receptacles: tuple[Receptacle, ...]
    objects: tuple[Object, ...]
    contents: tuple[tuple[int, ...], ...]
    can_contain: Mapping[str, frozenset[str]]
    start: int
    opened: frozenset[int] = frozenset()
    cool: frozenset[int] = frozenset()
    reachable_from: tuple[frozenset[int], ...] | None = None
    object_contents: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @cached_property
    def go_to_cache(self) -> dict[int, dict[str, Any]]:
        """A cache for `admissible_actions`: maps a location to the `go to` commands there and their actions."""
        return {}

    @cached_property
    def receptacles_at(self) -> dict[int, list[int]]:
        """Maps a location to the receptacles that are reached from it."""
        receptacles_at: dict[int, list[int]] = {}
        for index, receptacle in enumerate(self.receptacles):
            receptacles_at.setdefault(receptacle.location, []).append(index)
        return receptacles_at

    @cached_property
    def start_reachable_from(self) -> tuple[frozenset[int], ...]:
        """For each object, the locations from which a knife reaches it at the start."""
        if self.reachable_from is not None:
            return self.reachable_from
        locations: list[set[int]] = [set() for _ in self.objects]
        for receptacle, contents in zip(self.receptacles, self.contents):
            for obj in contents:
                locations[obj].add(receptacle.location)
        return tuple(frozenset(s) for s in locations)


class Game(NamedTuple):
    """A task with its scene.

    Attributes:
        task: The task as the agent reads it.
        scene: The start state.
        goal: The condition that solves the task.
        texts: The texts of this game.
    """

    task: Task
    scene: Scene
    goal: Goal
    texts: GameTexts = REACT_TEXTS
