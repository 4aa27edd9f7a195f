"""Preconditions and answer of every command, in the hand-made kitchen."""

from __future__ import annotations

import pytest

from sad.envs.household.game import SIMPLE, Goal

from .kitchen import kitchen

NEVER = Goal(SIMPLE, "book", "fridge")  # no test reaches this goal
NOTHING = "Nothing happens."


def run(*actions: str, goal: Goal = NEVER, **options) -> list[str]:
    """Returns the answers to `actions`."""
    env = kitchen(goal, **options)
    env.reset(env.tasks[0])
    return [env.step(action).observation for action in actions]


def last(*actions: str) -> str:
    return run(*actions)[-1]


def test_first_observation_lists_the_room_and_ends_with_the_goal():
    env = kitchen(NEVER)
    assert env.reset(env.tasks[0]) == (
        "You are in the middle of a room. Looking quickly around you, you see a cabinet 2, a cabinet 1, a countertop 1, "
        "a desk 1, a fridge 1, a microwave 1, and a sinkbasin 1.\nYour task is to: see to it."
    )


def test_going_somewhere_shows_what_is_there():
    assert last("go to countertop 1") == "On the countertop 1, you see a apple 2, a apple 1, and a knife 1."
    assert last("go to cabinet 1") == "On the cabinet 1, you see a plate 1."
    assert last("go to sinkbasin 1") == "On the sinkbasin 1, you see nothing."
    assert last("go to fridge 1") == "The fridge 1 is closed."
    opened = "The fridge 1 is open. In it, you see a egg 1."
    assert last("go to fridge 1", "open fridge 1", "go to desk 1", "go to fridge 1") == opened
    assert run("go to fridge 1", loc_prefix=True) == ["You arrive at loc 1. The fridge 1 is closed."]


def test_going_to_the_own_location_does_nothing():
    assert last("go to cabinet 1", "go to cabinet 1") == NOTHING
    assert last("go to cabinet 1", "go to cabinet 2") == NOTHING  # at the same location
    assert (
        last("go to cabinet 1", "open cabinet 2") == "You open the cabinet 2. The cabinet 2 is open. In it, you see a mug 1."
    )


def test_doors():
    assert run("go to fridge 1", "close fridge 1", "open fridge 1", "open fridge 1", "close fridge 1") == [
        "The fridge 1 is closed.",
        NOTHING,
        "You open the fridge 1. The fridge 1 is open. In it, you see a egg 1.",
        NOTHING,
        "You close the fridge 1.",
    ]
    assert last("open fridge 1") == NOTHING  # out of reach
    assert last("go to cabinet 1", "open cabinet 1") == NOTHING  # it is not openable


def test_taking_needs_an_empty_hand_and_an_open_receptacle():
    take = "take egg 1 from fridge 1"
    assert last("go to fridge 1", take) == NOTHING
    assert last("go to fridge 1", "open fridge 1", take) == "You pick up the egg 1 from the fridge 1."
    assert last("go to fridge 1", "open fridge 1", take, "go to countertop 1", "take apple 1 from countertop 1") == NOTHING
    assert last("go to countertop 1", "take egg 1 from countertop 1") == NOTHING  # it is not there
    assert last("go to desk 1", "take desklamp 1 from desk 1") == NOTHING  # lamps are not pickupable


def test_putting_needs_an_open_receptacle_for_this_kind():
    hold = ("go to countertop 1", "take apple 2 from countertop 1")
    assert last(*hold, "go to fridge 1", "put apple 2 in/on fridge 1") == NOTHING  # closed
    assert last(*hold, "go to desk 1", "put apple 2 in/on desk 1") == NOTHING  # apples do not belong on desks
    assert last(*hold, "put apple 1 in/on countertop 1") == NOTHING  # it is not held
    answers = run(*hold, "go to fridge 1", "open fridge 1", "put apple 2 in/on fridge 1", "examine fridge 1")
    assert answers[-2] == "You put the apple 2 in/on the fridge 1."
    assert answers[-1] == "The fridge 1 is open. In it, you see a apple 2, and a egg 1."


def test_move_to_is_an_alias_of_put():
    way = ("go to countertop 1", "take apple 2 from countertop 1", "go to fridge 1", "open fridge 1")
    assert run(*way, "move apple 2 to fridge 1") == run(*way, "put apple 2 in/on fridge 1")
    assert last("move apple 2 to") == last("move") == NOTHING


def test_objects_are_listed_in_a_fixed_order():
    apple = ("take apple 2 from countertop 1", "put apple 2 in/on countertop 1", "examine countertop 1")
    assert last("go to countertop 1", *apple) == "On the countertop 1, you see a apple 2, a apple 1, and a knife 1."


@pytest.mark.parametrize(
    ("verb", "tool", "obj", "place"),
    [
        ("clean", "sinkbasin 1", "apple 1", "countertop 1"),
        ("heat", "microwave 1", "apple 1", "countertop 1"),
        ("cool", "fridge 1", "apple 1", "countertop 1"),
    ],
)
def test_treatments(verb, tool, obj, place):
    take, treat = f"take {obj} from {place}", f"{verb} {obj} with {tool}"
    # a closed receptacle works too
    assert last(f"go to {place}", take, f"go to {tool}", treat) == f"You {verb} the {obj} using the {tool}."
    assert last(f"go to {place}", take, treat) == NOTHING  # not there
    assert last(f"go to {tool}", treat) == NOTHING  # not held
    assert last("go to desk 1", "take book 1 from desk 1", f"go to {tool}", f"{verb} book 1 with {tool}") == NOTHING


@pytest.mark.parametrize(
    ("treatments", "description"),
    [
        ([], "There's nothing special about apple 1."),
        (["clean"], "This is a clean apple 1."),
        (["heat"], "This is a hot apple 1."),
        (["cool"], "This is a cold apple 1."),
        (["heat", "cool"], "This is a cold apple 1."),
        (["cool", "heat"], "This is a hot apple 1."),
        (["clean", "heat"], "This is a hot and clean apple 1."),
        (["clean", "cool"], "This is a cool and clean apple 1."),
    ],
)
@pytest.mark.parametrize("sliced", [False, True])
def test_examining_the_held_object(treatments, description, sliced):
    tools = {"clean": "sinkbasin 1", "heat": "microwave 1", "cool": "fridge 1"}
    actions = ["go to countertop 1"]
    if sliced:
        knife = ("take knife 1 from countertop 1", "slice apple 1 with knife 1", "put knife 1 in/on countertop 1")
        actions += knife
        kind = description.removeprefix("This is a ").removesuffix(" apple 1.")
        kind = {"cold": "cool", "There's nothing special about": ""}.get(kind, kind)
        description = f"This is a {kind} sliced apple 1.".replace("  ", " ")
    actions.append("take apple 1 from countertop 1")
    for verb in treatments:
        actions += [f"go to {tools[verb]}", f"{verb} apple 1 with {tools[verb]}"]
    assert last(*actions, "examine apple 1") == description


def test_examining_hollow_objects_and_receptacles():
    assert last("go to countertop 1", "examine apple 1") == NOTHING  # it is not held
    mug = ("go to cabinet 2", "open cabinet 2", "take mug 1 from cabinet 2")
    assert last(*mug, "examine mug 1") == "This is a normal mug 1. In it, you see nothing."
    assert last("go to desk 1", "examine desk 1") == "On the desk 1, you see a book 1, and a desklamp 1."
    assert last("go to desk 1", "examine fridge 1") == NOTHING


def test_slicing_needs_a_knife_in_the_hand():
    slice_it = "slice apple 1 with knife 1"
    knife = ("go to countertop 1", "take knife 1 from countertop 1")
    assert last(*knife, slice_it) == "You sliced the apple 1 with the knife 1."
    assert last("go to countertop 1", slice_it) == NOTHING
    assert last(*knife, "go to desk 1", slice_it) == NOTHING


def test_using_a_lamp():
    assert run("go to desk 1", "use desklamp 1", "use desklamp 1")[1:] == ["You turn on the desklamp 1."] * 2
    assert last("use desklamp 1") == last("go to desk 1", "use book 1") == NOTHING


def test_looking_around():
    assert last("look") == "You are in the middle of a room. Looking quickly around you, you see nothing."
    assert last("go to desk 1", "look") == "You are facing the desk 1. Next to it, you see nothing."
    there = "You are facing the cabinet 2, and cabinet 1. Next to it, you see "
    assert last("go to cabinet 1", "look") == there + "nothing."
    moved = ("open cabinet 2", "take mug 1 from cabinet 2", "put mug 1 in/on cabinet 1", "look")
    assert last("go to cabinet 1", *moved) == there + "a mug 1."  # as in the original


def test_inventory_and_help():
    assert last("inventory") == "You are not carrying anything."
    assert last("go to desk 1", "take book 1 from desk 1", "inventory") == "You are carrying: a book 1."
    assert last("help").startswith("Available commands:\n  look:") and "\n\n" not in last("help")


@pytest.mark.parametrize(
    "nonsense", ["", "dance", "go to", "go to fridge", "GO TO FRIDGE 1", "take", "put apple 1", "go to fridge 1\n\nopen"]
)
def test_unknown_commands_change_nothing(nonsense):
    env = kitchen(NEVER)
    env.reset(env.tasks[0])
    before = env.admissible_commands
    step = env.step(nonsense)
    assert step.observation == NOTHING and not step.done and step.reward == 0.0
    assert step.info == {"won": False, "admissible_commands": before, "valid": False}
