"""A hand-made kitchen with known answers, and a reader of gzipped JSON Lines."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sad.envs.household.catalog import CAN_CONTAIN, traits_of
from sad.envs.household.env import HouseholdEnv
from sad.envs.household.game import ALFWORLD_TEXTS, REACT_TEXTS, Game, Goal, Object, Receptacle, Scene
from sad.envs.protocol import Task

RECEPTACLES = [  # name, location, openable; the two cabinets share a location
    ("cabinet 2", 5, True),
    ("cabinet 1", 5, False),
    ("countertop 1", 4, False),
    ("desk 1", 6, False),
    ("fridge 1", 1, True),
    ("microwave 1", 2, True),
    ("sinkbasin 1", 3, False),
]
CONTENTS = {
    "countertop 1": ["apple 2", "apple 1", "knife 1"],
    "cabinet 2": ["mug 1"],
    "cabinet 1": ["plate 1"],
    "desk 1": ["book 1", "desklamp 1"],
    "fridge 1": ["egg 1"],
}


def kitchen(goal: Goal, *, loc_prefix: bool = False) -> HouseholdEnv:
    """Returns the kitchen as an environment with one task, `goal`."""
    names = sorted((name for names in CONTENTS.values() for name in names), key=lambda n: (n.split()[0], -int(n.split()[1])))
    scene = Scene(
        receptacles=tuple(Receptacle(name, name.split()[0], location, openable) for name, location, openable in RECEPTACLES),
        objects=tuple(Object(name, name.split()[0], traits_of(name.split()[0])) for name in names),
        contents=tuple(tuple(names.index(n) for n in CONTENTS.get(name, [])) for name, _, _ in RECEPTACLES),
        can_contain=CAN_CONTAIN,
        start=7,
    )
    return HouseholdEnv(
        [Game(Task("kitchen", goal.type, "see to it."), scene, goal, ALFWORLD_TEXTS if loc_prefix else REACT_TEXTS)]
    )


def read_gz(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a gzipped JSON Lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)
