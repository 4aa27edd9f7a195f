"""A kitchen built by hand, so that every answer in it is known, and the loader of ALFWorld's packed games."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sad.envs.household.catalog import HOLDS, traits_of
from sad.envs.household.dialect import NUMBERED, PLAIN
from sad.envs.household.env import HouseholdEnv
from sad.envs.household.game import Game
from sad.envs.household.goal import Goal
from sad.envs.household.scene import Receptacle, Scene, Thing
from sad.envs.protocol import Task

FURNITURE = [  # name, spot, openable; the two cabinets are reached from one spot
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
    """The kitchen as an environment with the one task `goal`."""
    names = sorted((name for names in CONTENTS.values() for name in names), key=lambda n: (n.split()[0], -int(n.split()[1])))
    scene = Scene(
        receptacles=tuple(Receptacle(name, name.split()[0], spot, openable) for name, spot, openable in FURNITURE),
        things=tuple(Thing(name, name.split()[0], traits_of(name.split()[0])) for name in names),
        inside=tuple(tuple(names.index(n) for n in CONTENTS.get(place, [])) for place, _, _ in FURNITURE),
        holds=HOLDS,
        start=7,
    )
    return HouseholdEnv([Game(Task("kitchen", goal.type, "see to it."), scene, goal, NUMBERED if loc_prefix else PLAIN)])


def read_gz(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a gzipped JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)
