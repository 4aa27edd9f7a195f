"""Scenes from a seed: a furnished room, things where they are usually found, and a task that can be done there."""

from __future__ import annotations

import random
import zlib

from sad.envs.household.catalog import FIXTURES, HOLDS, HOMES, OPENABLE, traits_of
from sad.envs.household.game import Game
from sad.envs.household.goal import CLEAN, COOL, HEAT, LIGHT, SIMPLE, TEMPLATES, TWO, Goal
from sad.envs.household.rooms import ROOMS, Room
from sad.envs.household.scene import Receptacle, Scene, Thing
from sad.envs.protocol import Task

SIZES = ("small", "full")
SPLITS = ("train", "valid")
LAMP = "desklamp"
# the rooms where a type of task is set, what the thing must be good for, and the furniture it takes
_SETTING: dict[str, tuple[tuple[str, ...], str, str]] = {
    SIMPLE: (tuple(ROOMS), "pickupable", ""),
    TWO: (tuple(ROOMS), "pickupable", ""),
    LIGHT: (("bedroom",), "pickupable", ""),
    CLEAN: (("kitchen", "bathroom"), "cleanable", "sinkbasin"),
    HEAT: (("kitchen",), "heatable", "microwave"),
    COOL: (("kitchen",), "coolable", "fridge"),
}
_SEVERAL = ("cabinet", "drawer", "shelf")  # the small room may have two of them
_SIDE_BY_SIDE = {"stoveburner": 0.5, "cabinet": 0.15, "drawer": 0.15, "shelf": 0.15}  # reached from one spot
_DOORLESS = 0.15  # of cabinets and drawers in full-sized rooms, as in ALFWorld


def generate(task_type: str, index: int, *, split: str, seed: int, size: str) -> Game:
    """Draws the game with this number.

    A scene belongs to `"valid"` or to `"train"` by what is in it (a checksum of the description), so the two never
    share a scene, whatever the seeds; draws that belong to the other split, or do not suit the task, are drawn again.

    Args:
        task_type: One of `goal.TASK_TYPES`.
        index: Number of the game within its split.
        split: `"train"` or `"valid"`.
        seed: Of the whole series.
        size: `"small"` (4 to 6 receptacles) or `"full"` (5 to 33, as in ALFWorld).
    """
    name = f"{size}-{split}-{seed}-{index:05d}"
    rng = random.Random(f"household {name}")  # a string: seeded by its bytes, the same in every process
    while True:
        drawn = _draw(rng, task_type, size)
        if drawn is None:
            continue
        scene, goal = drawn
        if split_of(scene) == split:
            text = rng.choice(TEMPLATES[task_type]).format(thing=goal.thing, place=goal.place)
            return Game(Task(name, task_type, text), scene, goal)


def split_of(scene: Scene) -> str:
    """The split to which a scene belongs: about one in four to `"valid"`."""
    names = [thing.name for thing in scene.things]
    where = [(r.name, [names[t] for t in inside]) for r, inside in zip(scene.receptacles, scene.inside)]
    return SPLITS[zlib.crc32(repr(where).encode()) % 4 == 0]


def _draw(rng: random.Random, task_type: str, size: str) -> tuple[Scene, Goal] | None:
    """One attempt; None if the room that was drawn does not suit the task."""
    rooms, trait, tool = _SETTING[task_type]
    room = ROOMS[rng.choice(rooms)]
    kinds = room.few if size == "small" else room.things
    kind = rng.choice([k for k in kinds if trait in traits_of(k) and k not in FIXTURES])
    furniture = sorted(room.corner if size == "small" else room.furniture)
    if task_type == LIGHT:
        place = LAMP
        needed = [rng.choice([h for h in HOMES[LAMP] if h in furniture])]
    else:
        place = rng.choice([k for k in furniture if kind in HOLDS[k] and k != tool])
        needed = [place] + ([tool] if tool else [])
    counts = _furnish(rng, room, size, needed)

    avoid = place if task_type in (SIMPLE, TWO) else ""  # nothing may be where it has to go already
    if not any(home in counts and home != avoid for home in HOMES[kind]):
        return None
    wanted = 2 if task_type == TWO else 1
    stock = {kind: wanted + rng.randrange(2 if size == "small" else 3)}
    _stock(rng, room, size, stock)
    if task_type == LIGHT:
        stock[LAMP] = 1
    receptacles = _receptacles(rng, counts, size)
    return _scene(rng, receptacles, stock, kind, avoid), Goal(task_type, kind, place)


def _furnish(rng: random.Random, room: Room, size: str, needed: list[str]) -> dict[str, int]:
    """How many receptacles there are of each kind, at least one of those needed."""
    if size == "full":
        counts = {kind: rng.randint(*span) for kind, span in room.furniture.items()}
        counts.update({kind: max(1, counts[kind]) for kind in needed})
        return {kind: count for kind, count in counts.items() if count}
    total = rng.randint(4, 6)
    counts = dict.fromkeys(needed, 1)
    while sum(counts.values()) < total:
        kind = rng.choice([k for k in room.corner if k not in counts or (k in _SEVERAL and counts[k] < 2)])
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def _stock(rng: random.Random, room: Room, size: str, stock: dict[str, int]) -> None:
    """Adds the things that have nothing to do with the task."""
    others = [kind for kind in (room.few if size == "small" else room.things) if kind not in stock]
    if size == "small":
        for kind in rng.sample(others, rng.randint(2, 4)):
            stock[kind] = 1
    else:
        for kind in others:
            stock[kind] = rng.randrange(2) if kind in FIXTURES else rng.choice((0, 1, 1, 2, 3))


def _receptacles(rng: random.Random, counts: dict[str, int], size: str) -> list[Receptacle]:
    """Names, doors and spots, in the order of description: by kind, numbers counting down."""
    names = [(kind, number) for kind in sorted(counts) for number in range(counts[kind], 0, -1)]
    spots = list(range(1, len(names) + 1))
    rng.shuffle(spots)
    receptacles: list[Receptacle] = []
    for (kind, number), spot in zip(names, spots):
        openable = kind in OPENABLE
        if size == "full":
            beside = receptacles and receptacles[-1].kind == kind
            if beside and rng.random() < _SIDE_BY_SIDE.get(kind, 0.0):
                spot = receptacles[-1].spot
            if kind in ("cabinet", "drawer") and rng.random() < _DOORLESS:
                openable = False
        receptacles.append(Receptacle(f"{kind} {number}", kind, spot, openable))
    return receptacles


def _scene(rng: random.Random, receptacles: list[Receptacle], stock: dict[str, int], kind_of_task: str, avoid: str) -> Scene:
    """Puts every thing somewhere: mostly at home, the likelier homes more often."""
    things: list[Thing] = []
    inside: list[list[int]] = [[] for _ in receptacles]
    for kind in sorted(stock):
        shunned = avoid if kind == kind_of_task else ""
        homes = [h for h in HOMES[kind] if h != shunned and any(r.kind == h for r in receptacles)]
        if not homes:
            continue  # no home here, so none of these
        for number in range(stock[kind], 0, -1):
            home = rng.choices(homes, weights=range(len(homes) + 2, 2, -1))[0]
            place = rng.choice([i for i, r in enumerate(receptacles) if r.kind == home])
            inside[place].append(len(things))
            things.append(Thing(f"{kind} {number}", kind, traits_of(kind)))
    return Scene(
        receptacles=tuple(receptacles),
        things=tuple(things),
        inside=tuple(tuple(contents) for contents in inside),
        holds=HOLDS,
        start=len(receptacles) + 1,
    )
