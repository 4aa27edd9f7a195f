"""What the household says: the answers of ALFWorld's text grammar, word for word."""

from __future__ import annotations

from collections.abc import Sequence

from sad.envs.household.dialect import PLAIN, Dialect
from sad.envs.household.world import Action, World

NOTHING_HAPPENS = "Nothing happens."
COMMANDS = """Available commands:
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


def enumeration(names: Sequence[str]) -> str:
    """`x`, `x, and y`, `x, y, and z`, or `nothing`."""
    if not names:
        return "nothing"
    if len(names) == 1:
        return names[0]
    return ", ".join(names[:-1]) + ", and " + names[-1]


def introduction(world: World) -> str:
    """The room as the episode begins: everything that can be gone to."""
    everything = enumeration([f"a {receptacle.name}" for receptacle in world.scene.receptacles])
    return f"You are in the middle of a room. Looking quickly around you, you see {everything}."


def answer(world: World, action: Action, dialect: Dialect = PLAIN) -> str:
    """What is said after `action` was applied to `world`.

    Args:
        world: The state after the action.
        action: A legal action that was just applied.
        dialect: The words of the game.
    """
    verb, t, r = action
    thing = "" if t is None else world.scene.things[t].name
    receptacle = "" if r is None else world.scene.receptacles[r].name
    if verb == "go":
        return dialect.arrival.format(place=receptacle, spot=world.spot) + _receptacle(world, r)
    if verb == "open":
        return f"You open the {receptacle}. {_receptacle(world, r)}"
    if verb == "close":
        return f"You close the {receptacle}."
    if verb == "take":
        return f"You pick up the {thing} from the {receptacle}."
    if verb == "put":
        return dialect.placed.format(thing=thing, place=receptacle)
    if verb in ("clean", "heat", "cool"):
        return f"You {verb} the {thing} using the {receptacle}."
    if verb == "use":
        return f"You turn on the {thing}."  # and never off: the original looks at "was ever toggled"
    if verb == "slice":
        return f"You sliced the {thing} with the {world.scene.things[world.held].name}."
    if verb == "examine":
        return _thing(world, t) if r is None else _receptacle(world, r)
    if verb == "inventory":
        return _inventory(world)
    return dialect.help or COMMANDS if verb == "help" else _look(world)


def _listing(world: World, things: Sequence[int]) -> str:
    return enumeration([f"a {world.scene.things[t].name}" for t in sorted(things)])


def _receptacle(world: World, r: int) -> str:
    name = world.scene.receptacles[r].name
    if not world.scene.receptacles[r].openable:
        return f"On the {name}, you see {_listing(world, world.inside[r])}."
    if r not in world.opened:
        return f"The {name} is closed."
    return f"The {name} is open. In it, you see {_listing(world, world.inside[r])}."


def _thing(world: World, t: int) -> str:
    """The first description of the grammar whose condition holds."""
    thing = world.scene.things[t]
    if "hollow" in thing.traits:
        return f"This is a normal {thing.name}. In it, you see {_listing(world, world.scene.within.get(t, ()))}."
    clean, sliced = t in world.clean, t in world.sliced
    warmth = "hot" if t in world.hot else "cool" if t in world.cool else ""
    if sliced and (clean or warmth):
        both = f"{warmth} and clean" if clean and warmth else warmth or "clean"
        return f"This is a {both} sliced {thing.name}."
    if clean and warmth:
        return f"This is a {warmth} and clean {thing.name}."
    if clean or warmth:
        return f"This is a {'clean' if clean else 'hot' if warmth == 'hot' else 'cold'} {thing.name}."
    if t in world.toggled:
        return f"This {thing.name} is on."
    # an untoggled lamp, too: nothing in the original's state says that it is off
    return f"This is a sliced {thing.name}." if sliced else f"There's nothing special about {thing.name}."


def _inventory(world: World) -> str:
    if world.held is None:
        return "You are not carrying anything."
    return f"You are carrying: a {world.scene.things[world.held].name}."


def _look(world: World) -> str:
    """What is here.

    As in the original, the room is described only once, and what is seen "next to" the receptacles are the things that
    were moved from one of them to another within the same spot.
    """
    here = world.here()
    if not here:
        return "You are in the middle of a room. Looking quickly around you, you see nothing."
    moved = [t for t, r in world.left if r in here and world.spot in world.spots[t]]
    facing = enumeration([world.scene.receptacles[r].name for r in here])
    return f"You are facing the {facing}. Next to it, you see {_listing(world, moved)}."
