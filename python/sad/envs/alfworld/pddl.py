"""Scenes from ALFWorld's own games: a PDDL problem becomes a scene of the same engine."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from sad.envs.household.game import Game
from sad.envs.household.goal import CLEAN, COOL, HEAT, LIGHT, PREAMBLE, SIMPLE, TWO, Goal
from sad.envs.household.scene import Receptacle, Scene, Thing
from sad.envs.protocol import Task
from sad.errors import InputError

_FACT = re.compile(r"\((\w+)\s+([^()]*)\)")
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
    """Reads one of ALFWorld's games.

    Args:
        problem: The PDDL problem: `:init` and `:goal` of ALFWorld's domain.
        task: The task as the agent is told it, with or without "Your task is to: ".
        name: What the task is to be called.

    Raises:
        InputError: `problem` does not hold a scene and one of the six goals.
    """
    goal = goal_from_pddl(problem, name)
    init = problem.lower().partition("(:goal")[0].partition("(:init")[2]
    facts: dict[str, list[list[str]]] = defaultdict(list)
    for predicate, arguments in _FACT.findall(init):
        facts[predicate].append(arguments.split())
    try:
        scene = _scene(facts)
    except (KeyError, IndexError, ValueError) as flaw:
        raise InputError(f"{name}: problem", "a whole scene in :init", repr(flaw), "Check the file.") from None
    return Game(Task(name, goal.type, task.rpartition(PREAMBLE)[2].strip()), scene, goal)


def goal_from_pddl(problem: str, name: str) -> Goal:
    """Reads the goal of one of ALFWorld's games, and nothing else.

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
    names = _numbered({argument for rows in facts.values() for row in rows for argument in row})
    spots = {place: int(name.rpartition(" ")[2]) for place, name in names.items() if name.startswith("loc ")}
    kinds = {name: kind.removesuffix("type") for name, kind in facts["receptacletype"] + facts["objecttype"]}
    where = dict(facts["receptacleatlocation"])
    openable = {row[0] for row in facts["openable"]}
    places = sorted(name for name, _ in facts["receptacletype"])
    ids = sorted(name for name, _ in facts["objecttype"])
    index = {name: i for i, name in enumerate(ids)}

    traits: dict[str, set[str]] = defaultdict(set)
    for predicate, trait in _TRAITS.items():
        for row in facts[predicate]:
            traits[row[0]].add(trait)
    inside: dict[str, list[int]] = defaultdict(list)
    for thing, place in facts["inreceptacle"]:
        inside[place].append(index[thing])
    near: dict[str, set[int]] = defaultdict(set)
    for thing, location in facts["objectatlocation"]:
        near[thing].add(spots[location])
    within: dict[int, list[int]] = defaultdict(list)
    for inner, outer in facts["inreceptacleobject"]:
        within[index[outer]].append(index[inner])
    holds: dict[str, set[str]] = defaultdict(set)
    for place, thing in facts["cancontain"]:
        holds[place.removesuffix("type")].add(thing.removesuffix("type"))

    opened = {row[0] for row in facts["opened"]}
    return Scene(
        receptacles=tuple(Receptacle(names[p], kinds[p], spots[where[p]], p in openable) for p in places),
        things=tuple(Thing(names[t], kinds[t], frozenset(traits[t])) for t in ids),
        inside=tuple(tuple(inside[p]) for p in places),
        holds={place: frozenset(things) for place, things in holds.items()},
        start=spots[facts["atlocation"][0][1]],
        opened=frozenset(i for i, p in enumerate(places) if p in opened),
        cool=frozenset(index[row[0]] for row in facts["iscool"]),
        spots=tuple(frozenset(near[t]) for t in ids),
        within={outer: tuple(inner) for outer, inner in within.items()},
    )


def _numbered(ids: Iterable[str]) -> dict[str, str]:
    """The names that the game shows: the kind, and a number that counts down along the sorted ids of the kind."""
    by_kind: dict[str, list[str]] = defaultdict(list)
    for name in sorted(ids):
        kind, bar, _ = name.partition("_bar_")
        if bar:
            by_kind[kind + ("basin" if "basin" in name else "")].append(name)
    return {name: f"{kind} {len(members) - i}" for kind, members in by_kind.items() for i, name in enumerate(members)}


def _goal(text: str) -> Goal | None:
    """Recognizes which of the six formulas the goal is; None if it is none of them."""
    facts = [(predicate, arguments.split()) for predicate, arguments in _FACT.findall(text)]
    things = [(row[0], row[1].removesuffix("type")) for predicate, row in facts if predicate == "objecttype"]
    places = [row[1].removesuffix("type") for predicate, row in facts if predicate == "receptacletype"]
    states = [_STATES[predicate] for predicate, _ in facts if predicate in _STATES]
    task_type = states[0] if states else TWO if len(things) == 2 else SIMPLE
    if task_type == LIGHT and len(things) == 2:
        lit = next(row[0] for predicate, row in facts if predicate == "istoggled")
        kinds = dict(things)
        lamp = kinds.pop(lit)
        return Goal(LIGHT, next(iter(kinds.values())), lamp)
    if len(set(states)) > 1 or not things or len(set(places)) != 1:
        return None
    return Goal(task_type, things[0][1], places[0])
