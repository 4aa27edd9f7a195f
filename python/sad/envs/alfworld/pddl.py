"""Reads the PDDL problem of an ALFWorld game into a `Game` of the household engine."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from sad.envs.household.game import (
    CLEAN,
    COOL,
    GOAL_PREFIX,
    HEAT,
    LIGHT,
    SIMPLE,
    TWO,
    Game,
    Goal,
    Object,
    Receptacle,
    Scene,
)
from sad.envs.protocol import Task
from sad.errors import InputError

_FACT = re.compile(r"\((\w+)\s([^()]*)\)")  # one blank: the search stays linear if a file has thousands
_TRAITS = {
    "pickupable": "pickupable",
    "cleanable": "cleanable",
    "heatable": "heatable",
    "coolable": "coolable",
    "toggleable": "toggleable",
    "sliceable": "sliceable",
    "isreceptacleobject": "hollow",
}
_STATES = {"isclean": CLEAN, "ishot": HEAT, "iscool": COOL, "istoggled": LIGHT}


def game_from_pddl(problem: str, task: str, name: str) -> Game:
    """Reads an ALFWorld game.

    Args:
        problem: The PDDL problem, with `:init` and `:goal` in ALFWorld's domain.
        task: The instruction that the agent reads, with or without "Your task is to: ".
        name: The id of the task.

    Raises:
        InputError: `problem` has no complete scene, or none of the six goals.
    """
    goal = goal_from_pddl(problem, name)
    init = problem.lower().partition("(:goal")[0].partition("(:init")[2]
    facts: dict[str, list[list[str]]] = defaultdict(list)
    for predicate, arguments in _FACT.findall(init):
        facts[predicate].append(arguments.split())
    try:
        scene = _scene(facts)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{name}: problem", "a complete scene in :init", repr(error), "Check the file.") from None
    return Game(Task(name, goal.type, task.rpartition(GOAL_PREFIX)[2].strip()), scene, goal)


def goal_from_pddl(problem: str, name: str) -> Goal:
    """Reads only the goal of an ALFWorld game.

    Raises:
        InputError: `problem` has no `:init`, or none of the six goals.
    """
    start = problem.lower().find("(:goal")
    if start < 0 or "(:init" not in problem:
        raise InputError(f"{name}: problem", "a PDDL problem with :init and :goal", repr(problem[:60]), "Check the file.")
    text = problem[start:].lower()
    try:
        goal = _goal(text)
    except (KeyError, IndexError, StopIteration):
        goal = None
    if goal is None:
        got = repr(text.removeprefix("(:goal").strip()[:80])
        raise InputError(f"{name}: goal", "one of the six goals of ALFWorld", got, "Leave this game out.")
    return goal


def _scene(facts: dict[str, list[list[str]]]) -> Scene:
    """Builds the scene from the facts of `:init`: predicate -> argument lists."""
    names = _display_names({argument for rows in facts.values() for row in rows for argument in row})
    locations = {pddl_id: int(name.rpartition(" ")[2]) for pddl_id, name in names.items() if name.startswith("loc ")}
    kinds = {pddl_id: kind.removesuffix("type") for pddl_id, kind in facts["receptacletype"] + facts["objecttype"]}
    location_of = dict(facts["receptacleatlocation"])
    openable = {row[0] for row in facts["openable"]}
    receptacles = sorted(pddl_id for pddl_id, _ in facts["receptacletype"])
    objects = sorted(pddl_id for pddl_id, _ in facts["objecttype"])
    index = {pddl_id: i for i, pddl_id in enumerate(objects)}

    traits: dict[str, set[str]] = defaultdict(set)
    for predicate, trait in _TRAITS.items():
        for row in facts[predicate]:
            traits[row[0]].add(trait)
    contents: dict[str, list[int]] = defaultdict(list)
    for obj, receptacle in facts["inreceptacle"]:
        contents[receptacle].append(index[obj])
    reachable_from: dict[str, set[int]] = defaultdict(set)
    for obj, location in facts["objectatlocation"]:
        reachable_from[obj].add(locations[location])
    object_contents: dict[int, list[int]] = defaultdict(list)
    for inner, outer in facts["inreceptacleobject"]:
        object_contents[index[outer]].append(index[inner])
    can_contain: dict[str, set[str]] = defaultdict(set)
    for receptacle, obj in facts["cancontain"]:
        can_contain[receptacle.removesuffix("type")].add(obj.removesuffix("type"))

    opened = {row[0] for row in facts["opened"]}
    return Scene(
        receptacles=tuple(Receptacle(names[r], kinds[r], locations[location_of[r]], r in openable) for r in receptacles),
        objects=tuple(Object(names[o], kinds[o], frozenset(traits[o])) for o in objects),
        contents=tuple(tuple(contents[r]) for r in receptacles),
        can_contain={kind: frozenset(object_kinds) for kind, object_kinds in can_contain.items()},
        start=locations[facts["atlocation"][0][1]],
        opened=frozenset(i for i, r in enumerate(receptacles) if r in opened),
        cool=frozenset(index[row[0]] for row in facts["iscool"]),
        reachable_from=tuple(frozenset(reachable_from[o]) for o in objects),
        object_contents={outer: tuple(inner) for outer, inner in object_contents.items()},
    )


def _display_names(ids: Iterable[str]) -> dict[str, str]:
    """Maps PDDL ids to the names in observations: the kind and a number that decreases along the sorted ids of the kind."""
    by_kind: dict[str, list[str]] = defaultdict(list)
    for name in sorted(ids):
        kind, bar, _ = name.partition("_bar_")
        if bar:
            by_kind[kind + ("basin" if "basin" in name else "")].append(name)
    return {name: f"{kind} {len(members) - i}" for kind, members in by_kind.items() for i, name in enumerate(members)}


def _goal(text: str) -> Goal | None:
    """Returns which of the six goals the formula is, or None for another formula."""
    facts = [(predicate, arguments.split()) for predicate, arguments in _FACT.findall(text)]
    objects = [(row[0], row[1].removesuffix("type")) for predicate, row in facts if predicate == "objecttype"]
    targets = [row[1].removesuffix("type") for predicate, row in facts if predicate == "receptacletype"]
    states = [_STATES[predicate] for predicate, _ in facts if predicate in _STATES]
    task_type = states[0] if states else TWO if len(objects) == 2 else SIMPLE
    if task_type == LIGHT and len(objects) == 2:
        toggled = next(row[0] for predicate, row in facts if predicate == "istoggled")
        kinds = dict(objects)
        lamp = kinds.pop(toggled)
        return Goal(LIGHT, next(iter(kinds.values())), lamp)
    if len(set(states)) > 1 or not objects or len(set(targets)) != 1:
        return None
    return Goal(task_type, objects[0][1], targets[0])
