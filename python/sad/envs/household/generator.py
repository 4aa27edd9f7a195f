"""Generates games from a seed: a room, objects where they are usually found, and a task that can be solved there."""

from __future__ import annotations

import random
import zlib

from sad.envs.household.catalog import CAN_CONTAIN, FIXTURES, OPENABLE, ROOMS, USUAL_PLACES, Room, traits_of
from sad.envs.household.game import (
    CLEAN,
    COOL,
    GOAL_TEMPLATES,
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

SIZES = ("small", "full")
SPLITS = ("train", "valid")
LAMP = "desklamp"
# Task type -> the rooms, the trait that the object needs, and the receptacle kind that the task needs.
_SETTING: dict[str, tuple[tuple[str, ...], str, str]] = {
    SIMPLE: (tuple(ROOMS), "pickupable", ""),
    TWO: (tuple(ROOMS), "pickupable", ""),
    LIGHT: (("bedroom",), "pickupable", ""),
    CLEAN: (("kitchen", "bathroom"), "cleanable", "sinkbasin"),
    HEAT: (("kitchen",), "heatable", "microwave"),
    COOL: (("kitchen",), "coolable", "fridge"),
}
_REPEATABLE = ("cabinet", "drawer", "shelf")  # a small room can have two of each
# Probability that a receptacle shares the location of the previous one of its kind, in full rooms.
_SHARED_LOCATION = {"stoveburner": 0.5, "cabinet": 0.15, "drawer": 0.15, "shelf": 0.15}
_NOT_OPENABLE = 0.15  # probability for cabinets and drawers in full rooms, as in ALFWorld


def generate(task_type: str, index: int, *, split: str, seed: int, size: str) -> Game:
    """Generates one game.

    A checksum of the scene decides whether it belongs to `"valid"` or `"train"`, so the splits share no scene for any
    seeds. A draw that belongs to the other split, or does not suit the task, is repeated.

    Args:
        task_type: One of `game.TASK_TYPES`.
        index: Number of the game within its split.
        split: `"train"` or `"valid"`.
        seed: Random seed of all games of the split.
        size: `"small"` (4 to 6 receptacles) or `"full"` (5 to 33, as in ALFWorld).
    """
    name = f"{size}-{split}-{seed}-{index:05d}"
    rng = random.Random(f"household {name}")  # a string seed is the same in every process
    while True:
        drawn = _draw(rng, task_type, size)
        if drawn is None:
            continue
        scene, goal = drawn
        if split_of(scene) == split:
            text = rng.choice(GOAL_TEMPLATES[task_type]).format(object=goal.object, target=goal.target)
            return Game(Task(name, task_type, text), scene, goal)


def split_of(scene: Scene) -> str:
    """Returns the split of a scene. About one scene in four belongs to `"valid"`."""
    names = [obj.name for obj in scene.objects]
    contents = [(r.name, [names[o] for o in inside]) for r, inside in zip(scene.receptacles, scene.contents)]
    return SPLITS[zlib.crc32(repr(contents).encode()) % 4 == 0]


def _draw(rng: random.Random, task_type: str, size: str) -> tuple[Scene, Goal] | None:
    """Draws a scene and a goal. Returns None if the room does not suit the task."""
    rooms, trait, tool = _SETTING[task_type]
    room = ROOMS[rng.choice(rooms)]
    kinds = room.small_objects if size == "small" else room.objects
    kind = rng.choice([k for k in kinds if trait in traits_of(k) and k not in FIXTURES])
    places = sorted(room.small_receptacles if size == "small" else room.receptacles)
    if task_type == LIGHT:
        target = LAMP
        required = [rng.choice([p for p in USUAL_PLACES[LAMP] if p in places])]
    else:
        target = rng.choice([p for p in places if kind in CAN_CONTAIN[p] and p != tool])
        required = [target] + ([tool] if tool else [])
    receptacle_counts = _draw_receptacle_counts(rng, room, size, required)

    avoid = target if task_type in (SIMPLE, TWO) else ""  # the object must not be at the target from the start
    if not any(place in receptacle_counts and place != avoid for place in USUAL_PLACES[kind]):
        return None
    needed = 2 if task_type == TWO else 1
    object_counts = {kind: needed + rng.randrange(2 if size == "small" else 3)}
    _draw_other_objects(rng, room, size, object_counts)
    if task_type == LIGHT:
        object_counts[LAMP] = 1
    receptacles = _make_receptacles(rng, receptacle_counts, size)
    return _place_objects(rng, receptacles, object_counts, kind, avoid), Goal(task_type, kind, target)


def _draw_receptacle_counts(rng: random.Random, room: Room, size: str, required: list[str]) -> dict[str, int]:
    """Draws the number of receptacles of each kind, with at least one of each required kind."""
    if size == "full":
        counts = {kind: rng.randint(*span) for kind, span in room.receptacles.items()}
        counts.update({kind: max(1, counts[kind]) for kind in required})
        return {kind: count for kind, count in counts.items() if count}
    total = rng.randint(4, 6)
    counts = dict.fromkeys(required, 1)
    while sum(counts.values()) < total:
        kind = rng.choice([k for k in room.small_receptacles if k not in counts or (k in _REPEATABLE and counts[k] < 2)])
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def _draw_other_objects(rng: random.Random, room: Room, size: str, counts: dict[str, int]) -> None:
    """Adds objects that the task does not need to `counts`."""
    others = [kind for kind in (room.small_objects if size == "small" else room.objects) if kind not in counts]
    if size == "small":
        for kind in rng.sample(others, rng.randint(2, 4)):
            counts[kind] = 1
    else:
        for kind in others:
            counts[kind] = rng.randrange(2) if kind in FIXTURES else rng.choice((0, 1, 1, 2, 3))


def _make_receptacles(rng: random.Random, counts: dict[str, int], size: str) -> list[Receptacle]:
    """Makes the receptacles in the order of the room description: by kind, with descending numbers."""
    names = [(kind, number) for kind in sorted(counts) for number in range(counts[kind], 0, -1)]
    locations = list(range(1, len(names) + 1))
    rng.shuffle(locations)
    receptacles: list[Receptacle] = []
    for (kind, number), location in zip(names, locations):
        openable = kind in OPENABLE
        if size == "full":
            same_kind = receptacles and receptacles[-1].kind == kind
            if same_kind and rng.random() < _SHARED_LOCATION.get(kind, 0.0):
                location = receptacles[-1].location
            if kind in ("cabinet", "drawer") and rng.random() < _NOT_OPENABLE:
                openable = False
        receptacles.append(Receptacle(f"{kind} {number}", kind, location, openable))
    return receptacles


def _place_objects(
    rng: random.Random, receptacles: list[Receptacle], counts: dict[str, int], goal_kind: str, avoid: str
) -> Scene:
    """Makes a scene with each object at one of its usual places. Likelier places are drawn more often.

    Args:
        rng: Random generator.
        receptacles: The receptacles of the scene.
        counts: Object kind -> number of objects.
        goal_kind: Object kind of the goal.
        avoid: Receptacle kind that gets no object of `goal_kind`.
    """
    objects: list[Object] = []
    contents: list[list[int]] = [[] for _ in receptacles]
    for kind in sorted(counts):
        excluded = avoid if kind == goal_kind else ""
        places = [p for p in USUAL_PLACES[kind] if p != excluded and any(r.kind == p for r in receptacles)]
        if not places:
            continue
        for number in range(counts[kind], 0, -1):
            place = rng.choices(places, weights=range(len(places) + 2, 2, -1))[0]
            index = rng.choice([i for i, r in enumerate(receptacles) if r.kind == place])
            contents[index].append(len(objects))
            objects.append(Object(f"{kind} {number}", kind, traits_of(kind)))
    return Scene(
        receptacles=tuple(receptacles),
        objects=tuple(objects),
        contents=tuple(tuple(inside) for inside in contents),
        can_contain=CAN_CONTAIN,
        start=len(receptacles) + 1,
    )
