"""The observations of the household: formatting them, in the exact texts of ALFWorld's grammar, and parsing them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from sad.envs.household.game import GOAL_PREFIX, GOAL_TEMPLATES, REACT_TEXTS, GameTexts, Goal
from sad.envs.household.state import Action, HouseholdState
from sad.errors import InputError

NOTHING_HAPPENS = "Nothing happens."
_COMMANDS = """Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  put (object) in/on (receptacle):  place an object in or on a receptacle
  move (object) to (receptacle):    the same
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object"""
_NAME = re.compile(r"\ba ([a-z]+ \d+)")
_CONTENTS = re.compile(r"(?:On the|The) ([a-z]+ \d+)(?: is open\. In it)?, you see ([^.]*)\.")
_CLOSED = re.compile(r"The ([a-z]+ \d+) is closed\.")
_GOALS = [
    (
        task_type,
        re.compile(
            re.escape(template).replace(r"\{object\}", r"(?P<object>\w+)").replace(r"\{target\}", r"(?P<target>\w+)")
        ),
    )
    for task_type, templates in GOAL_TEMPLATES.items()
    for template in templates
]


class ReceptacleView(NamedTuple):
    """A receptacle as an observation shows it.

    Attributes:
        name: Its name.
        contents: The names of the objects in or on it. None if it is closed.
    """

    name: str
    contents: list[str] | None


def kind_of(name: str) -> str:
    """Returns the kind in a name: `mug` for `mug 1`."""
    return name.rpartition(" ")[0]


def parse_receptacles(first_observation: str) -> list[str]:
    """Returns the names of the receptacles in the first observation, in its order."""
    return _NAME.findall(first_observation.partition(GOAL_PREFIX)[0])


def parse_goal(text: str) -> Goal:
    """Parses a goal in the form of one of `GOAL_TEMPLATES`. Other text can precede it.

    Raises:
        InputError: No template matches.
    """
    instruction = text.rpartition(GOAL_PREFIX)[2].strip()
    for task_type, pattern in _GOALS:
        if match := pattern.fullmatch(instruction):
            return Goal(task_type, match["object"], match["target"])
    remedy = "Use a goal such as 'put a mug in cabinet.'; docs/environments.md has one example per task type."
    raise InputError("task", "a goal in one of the household's templates", repr(instruction), remedy)


def parse_view(observation: str) -> ReceptacleView | None:
    """Returns the receptacle that an observation shows, if any."""
    if match := _CONTENTS.search(observation):
        return ReceptacleView(match[1], _NAME.findall(match[2]))
    if match := _CLOSED.search(observation):
        return ReceptacleView(match[1], None)
    return None


def format_room(state: HouseholdState) -> str:
    """Returns the room description at the start of an episode, with all receptacles."""
    receptacles = _join([f"a {receptacle.name}" for receptacle in state.scene.receptacles])
    return f"You are in the middle of a room. Looking quickly around you, you see {receptacles}."


def format_answer(state: HouseholdState, action: Action, texts: GameTexts = REACT_TEXTS) -> str:
    """Returns the observation after an action.

    Args:
        state: The state after the action.
        action: The admissible action that was applied last.
        texts: The texts of the game.
    """
    verb, o, r = action
    obj = "" if o is None else state.scene.objects[o].name
    receptacle = "" if r is None else state.scene.receptacles[r].name
    if verb == "go":
        return texts.arrival.format(receptacle=receptacle, location=state.location) + _receptacle(state, r)
    if verb == "open":
        return f"You open the {receptacle}. {_receptacle(state, r)}"
    if verb == "close":
        return f"You close the {receptacle}."
    if verb == "take":
        return f"You pick up the {obj} from the {receptacle}."
    if verb == "put":
        return texts.put_answer.format(object=obj, receptacle=receptacle)
    if verb in ("clean", "heat", "cool"):
        return f"You {verb} the {obj} using the {receptacle}."
    if verb == "use":
        return f"You turn on the {obj}."  # never off: ALFWorld only records that the lamp was toggled
    if verb == "slice":
        return f"You sliced the {obj} with the {state.scene.objects[state.held].name}."
    if verb == "examine":
        return _object(state, o) if r is None else _receptacle(state, r)
    if verb == "inventory":
        return _inventory(state)
    return texts.help or _COMMANDS if verb == "help" else _look(state)


def _join(names: Sequence[str]) -> str:
    """Returns `x`, `x, and y`, `x, y, and z`, or `nothing`."""
    if not names:
        return "nothing"
    if len(names) == 1:
        return names[0]
    return ", ".join(names[:-1]) + ", and " + names[-1]


def _list_objects(state: HouseholdState, objects: Sequence[int]) -> str:
    return _join([f"a {state.scene.objects[o].name}" for o in sorted(objects)])


def _receptacle(state: HouseholdState, r: int) -> str:
    name = state.scene.receptacles[r].name
    if not state.scene.receptacles[r].openable:
        return f"On the {name}, you see {_list_objects(state, state.contents[r])}."
    if r not in state.opened:
        return f"The {name} is closed."
    return f"The {name} is open. In it, you see {_list_objects(state, state.contents[r])}."


def _object(state: HouseholdState, o: int) -> str:
    """Returns the first description of ALFWorld's grammar whose condition holds."""
    obj = state.scene.objects[o]
    if "hollow" in obj.traits:
        contents = _list_objects(state, state.scene.object_contents.get(o, ()))
        return f"This is a normal {obj.name}. In it, you see {contents}."
    clean, sliced = o in state.clean, o in state.sliced
    warmth = "hot" if o in state.hot else "cool" if o in state.cool else ""
    if sliced and (clean or warmth):
        both = f"{warmth} and clean" if clean and warmth else warmth or "clean"
        return f"This is a {both} sliced {obj.name}."
    if clean and warmth:
        return f"This is a {warmth} and clean {obj.name}."
    if clean or warmth:
        return f"This is a {'clean' if clean else 'hot' if warmth == 'hot' else 'cold'} {obj.name}."
    if o in state.toggled:
        return f"This {obj.name} is on."
    # ALFWorld's state does not record that a lamp is off, so a lamp has no description of its own.
    return f"This is a sliced {obj.name}." if sliced else f"There's nothing special about {obj.name}."


def _inventory(state: HouseholdState) -> str:
    if state.held is None:
        return "You are not carrying anything."
    return f"You are carrying: a {state.scene.objects[state.held].name}."


def _look(state: HouseholdState) -> str:
    """Returns the answer to `look`.

    As in ALFWorld, it does not describe the room again. The objects "next to" the receptacles are those that the agent
    moved from one receptacle to another at this location.
    """
    here = state.receptacles_here()
    if not here:
        return "You are in the middle of a room. Looking quickly around you, you see nothing."
    moved = [o for o, r in state.removed if r in here and state.location in state.reachable_from[o]]
    facing = _join([state.scene.receptacles[r].name for r in here])
    return f"You are facing the {facing}. Next to it, you see {_list_objects(state, moved)}."
