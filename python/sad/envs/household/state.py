"""The state of a household episode and its rules, which are those of ALFWorld's PDDL domain.

`admissible_actions` evaluates the preconditions, `HouseholdState.apply` the effects.
"""

from __future__ import annotations

from typing import NamedTuple

from sad.envs.household.game import CLEAN, COOL, HEAT, LIGHT, REACT_TEXTS, TWO, GameTexts, Goal, Scene

_SINKS = frozenset({"sink", "sinkbasin"})
_KNIVES = frozenset({"knife", "butterknife"})
# Actions on a held object: the verb, the trait that the object needs, and the receptacle kinds that can do it.
_TREATMENTS = (
    ("clean", "cleanable", _SINKS),
    ("heat", "heatable", frozenset({"microwave"})),
    ("cool", "coolable", frozenset({"fridge"})),
)


class Action(NamedTuple):
    """An action. Its arguments are indices into the scene.

    Attributes:
        verb: One of `go open close take put clean heat cool use slice examine look inventory help`.
        obj: The object of the action, if any.
        receptacle: The receptacle of the action, if any.
    """

    verb: str
    obj: int | None = None
    receptacle: int | None = None


_LOOK, _INVENTORY, HELP = Action("look"), Action("inventory"), Action("help")


class HouseholdState:
    """The state of an episode. It begins as a copy of the scene and never changes the scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.location = scene.start
        self.held: int | None = None
        self.contents = [set(contents) for contents in scene.contents]
        self.reachable_from = [set(locations) for locations in scene.start_reachable_from]
        self.opened = set(scene.opened)
        self.cool = set(scene.cool)
        self.hot: set[int] = set()
        self.clean: set[int] = set()
        self.sliced: set[int] = set()
        self.toggled: set[int] = set()
        # Pairs (object, receptacle): the object was taken out of the receptacle and not put back into it.
        self.removed: set[tuple[int, int]] = set()

    def receptacles_here(self) -> list[int]:
        """Returns the receptacles at the agent's location."""
        return self.scene.receptacles_at.get(self.location, [])

    def accessible(self, receptacle: int) -> bool:
        """Returns whether objects can be taken from and put into the receptacle: it is open, or cannot be closed."""
        return receptacle in self.opened or not self.scene.receptacles[receptacle].openable

    def apply(self, action: Action) -> None:
        """Applies the effects of an admissible action."""
        verb, obj, receptacle = action
        if verb == "go":
            self.location = self.scene.receptacles[receptacle].location
        elif verb == "open":
            self.opened.add(receptacle)
        elif verb == "close":
            self.opened.remove(receptacle)
        elif verb == "take":
            self.contents[receptacle].remove(obj)
            self.reachable_from[obj].discard(self.location)
            self.removed.add((obj, receptacle))
            self.held = obj
        elif verb == "put":
            self.contents[receptacle].add(obj)
            self.reachable_from[obj].add(self.location)
            self.removed.discard((obj, receptacle))
            self.held = None
        elif verb == "clean":
            self.clean.add(obj)
        elif verb == "heat":
            self.hot.add(obj)
            self.cool.discard(obj)
        elif verb == "cool":
            self.cool.add(obj)
            self.hot.discard(obj)
        elif verb == "use":
            self.toggled.add(obj)  # a second `use` does not turn the lamp off
        elif verb == "slice":
            self.sliced.add(obj)

    def satisfies(self, goal: Goal) -> bool:
        """Returns whether the goal holds in this state."""
        objects = self.scene.objects
        if goal.type == LIGHT:
            if self.held is None or objects[self.held].kind != goal.object:
                return False
            near = {obj for receptacle in self.receptacles_here() for obj in self.contents[receptacle]}
            return any(objects[obj].kind == goal.target for obj in self.toggled & near)
        treated = {CLEAN: self.clean, HEAT: self.hot, COOL: self.cool}.get(goal.type)
        needed = 2 if goal.type == TWO else 1
        for receptacle, contents in zip(self.scene.receptacles, self.contents):
            if receptacle.kind == goal.target:
                fitting = [o for o in contents if objects[o].kind == goal.object and (treated is None or o in treated)]
                if len(fitting) >= needed:
                    return True
        return False


def admissible_actions(state: HouseholdState, texts: GameTexts = REACT_TEXTS) -> dict[str, Action]:
    """Maps every admissible command to its action.

    `go to` a receptacle at the agent's own location has no effect and is not admissible. `help` is admissible if `texts`
    has an answer to it.
    """
    scene, held = state.scene, state.held
    receptacles, objects = scene.receptacles, scene.objects
    commands = dict(_go_to_actions(scene, state.location))
    for r in state.receptacles_here():
        name, kind = receptacles[r].name, receptacles[r].kind
        commands[f"examine {name}"] = Action("examine", None, r)
        if receptacles[r].openable:
            verb = "close" if r in state.opened else "open"
            commands[f"{verb} {name}"] = Action(verb, None, r)
        accessible = state.accessible(r)
        for o in state.contents[r]:
            if held is None and accessible and "pickupable" in objects[o].traits:
                commands[f"take {objects[o].name} from {name}"] = Action("take", o, r)
            if "toggleable" in objects[o].traits:
                commands[f"use {objects[o].name}"] = Action("use", o, r)
        if held is not None:
            if accessible and objects[held].kind in scene.can_contain.get(kind, ()):
                commands[texts.put.format(object=objects[held].name, receptacle=name)] = Action("put", held, r)
            for verb, trait, kinds in _TREATMENTS:
                if kind in kinds and trait in objects[held].traits:
                    commands[f"{verb} {objects[held].name} with {name}"] = Action(verb, held, r)
    if held is not None:
        commands[f"examine {objects[held].name}"] = Action("examine", held)
        if objects[held].kind in _KNIVES:
            for o, obj in enumerate(objects):
                if state.location in state.reachable_from[o] and "sliceable" in obj.traits:
                    commands[f"slice {obj.name} with {objects[held].name}"] = Action("slice", o)
    commands["look"] = _LOOK
    commands["inventory"] = _INVENTORY
    if texts.help:
        commands["help"] = HELP
    return commands


def _go_to_actions(scene: Scene, location: int) -> dict[str, Action]:
    """Returns the `go to` commands from a location. They never change, so the scene caches them."""
    actions = scene.go_to_cache.get(location)
    if actions is None:
        actions = {
            f"go to {receptacle.name}": Action("go", None, index)
            for index, receptacle in enumerate(scene.receptacles)
            if receptacle.location != location
        }
        scene.go_to_cache[location] = actions
    return actions
