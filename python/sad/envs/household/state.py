"""The state of a household during an episode, and the rules by which it changes.

The rules are those of ALFWorld's PDDL domain: `legal` says which actions' preconditions hold, `World.apply` gives their
effects.
"""

from __future__ import annotations

from typing import NamedTuple

from sad.envs.household.dialect import PLAIN, Dialect
from sad.envs.household.scene import Scene

SINKS = frozenset({"sink", "sinkbasin"})
KNIVES = frozenset({"knife", "butterknife"})
# what is done to a held thing: the verb, the trait it needs, and the kinds of receptacle that do it
TREATMENTS = (
    ("clean", "cleanable", SINKS),
    ("heat", "heatable", frozenset({"microwave"})),
    ("cool", "coolable", frozenset({"fridge"})),
)


class Action(NamedTuple):
    """An action with its arguments, as indices into the scene.

    Attributes:
        verb: One of `go open close take put clean heat cool use slice examine look inventory help`.
        thing: The thing acted on, if any.
        receptacle: The receptacle acted on or with, if any.
    """

    verb: str
    thing: int | None = None
    receptacle: int | None = None


LOOK, INVENTORY, HELP = Action("look"), Action("inventory"), Action("help")


class World:
    """What is where, and in which state. Made fresh from a scene, which it never changes."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.spot = scene.start
        self.held: int | None = None
        self.inside = [set(contents) for contents in scene.inside]
        self.spots = [set(spots) for spots in scene.thing_spots]
        self.opened = set(scene.opened)
        self.cool = set(scene.cool)
        self.hot: set[int] = set()
        self.clean: set[int] = set()
        self.sliced: set[int] = set()
        self.toggled: set[int] = set()
        self.left: set[tuple[int, int]] = set()  # (thing, receptacle) it was taken out of and not put back into

    def here(self) -> list[int]:
        """The receptacles reached from where the agent stands."""
        return self.scene.by_spot.get(self.spot, [])

    def accessible(self, receptacle: int) -> bool:
        """Whether a hand gets into it: it has no door, or the door is open."""
        return receptacle in self.opened or not self.scene.receptacles[receptacle].openable

    def apply(self, action: Action) -> None:
        """Changes the state by the effects of a legal action."""
        verb, thing, receptacle = action
        if verb == "go":
            self.spot = self.scene.receptacles[receptacle].spot
        elif verb == "open":
            self.opened.add(receptacle)
        elif verb == "close":
            self.opened.remove(receptacle)
        elif verb == "take":
            self.inside[receptacle].remove(thing)
            self.spots[thing].discard(self.spot)
            self.left.add((thing, receptacle))
            self.held = thing
        elif verb == "put":
            self.inside[receptacle].add(thing)
            self.spots[thing].add(self.spot)
            self.left.discard((thing, receptacle))
            self.held = None
        elif verb == "clean":
            self.clean.add(thing)
        elif verb == "heat":
            self.hot.add(thing)
            self.cool.discard(thing)
        elif verb == "cool":
            self.cool.add(thing)
            self.hot.discard(thing)
        elif verb == "use":
            self.toggled.add(thing)  # for good: using a lamp again does not untoggle it
        elif verb == "slice":
            self.sliced.add(thing)


def legal(world: World, dialect: Dialect = PLAIN) -> dict[str, Action]:
    """Every admissible command with the action it stands for, in the words of the dialect.

    Going to a receptacle at the agent's own spot changes nothing and is not among them; `help` is where the dialect has it.
    """
    scene, held = world.scene, world.held
    receptacles, things = scene.receptacles, scene.things
    commands = dict(_ways(scene, world.spot))
    for r in world.here():
        name, kind = receptacles[r].name, receptacles[r].kind
        commands[f"examine {name}"] = Action("examine", None, r)
        if receptacles[r].openable:
            verb = "close" if r in world.opened else "open"
            commands[f"{verb} {name}"] = Action(verb, None, r)
        accessible = world.accessible(r)
        for t in world.inside[r]:
            if held is None and accessible and "pickupable" in things[t].traits:
                commands[f"take {things[t].name} from {name}"] = Action("take", t, r)
            if "toggleable" in things[t].traits:
                commands[f"use {things[t].name}"] = Action("use", t, r)
        if held is not None:
            if accessible and things[held].kind in scene.holds.get(kind, ()):
                commands[dialect.place.format(thing=things[held].name, place=name)] = Action("put", held, r)
            for verb, trait, kinds in TREATMENTS:
                if kind in kinds and trait in things[held].traits:
                    commands[f"{verb} {things[held].name} with {name}"] = Action(verb, held, r)
    if held is not None:
        commands[f"examine {things[held].name}"] = Action("examine", held)
        if things[held].kind in KNIVES:
            for t, thing in enumerate(things):
                if world.spot in world.spots[t] and "sliceable" in thing.traits:
                    commands[f"slice {thing.name} with {things[held].name}"] = Action("slice", t)
    commands["look"] = LOOK
    commands["inventory"] = INVENTORY
    if dialect.help:
        commands["help"] = HELP
    return commands


def _ways(scene: Scene, spot: int) -> dict[str, Action]:
    """The `go to` commands from a spot, which are the same every time."""
    ways = scene.ways.get(spot)
    if ways is None:
        ways = {
            f"go to {receptacle.name}": Action("go", None, index)
            for index, receptacle in enumerate(scene.receptacles)
            if receptacle.spot != spot
        }
        scene.ways[spot] = ways
    return ways
