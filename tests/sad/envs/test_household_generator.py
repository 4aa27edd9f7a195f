"""Generated scenes: reproducible, plausible, never shared between splits. Errors name the bad argument."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sad
from sad.envs.household.catalog import CAN_CONTAIN, FIXTURES, ROOMS, USUAL_PLACES
from sad.envs.household.game import LIGHT, SIMPLE, TASK_TYPES, TWO
from sad.envs.household.generator import LAMP, generate
from sad.envs.household.state import HouseholdState


def description(game) -> str:
    """Returns all values of a game as text, without the names of classes and fields."""
    names = [obj.name for obj in game.scene.objects]
    contents = [(*r, *(names[o] for o in inside)) for r, inside in zip(game.scene.receptacles, game.scene.contents)]
    return repr((contents, *(part and tuple(part) for part in (game.goal, game.task))))


CHECKSUM = 3124551529


def checksum() -> int:
    """Returns the checksum of 24 games of each size and split."""
    games = [
        generate(TASK_TYPES[index % 6], index, split=split, seed=11, size=size)
        for size in ("small", "full")
        for split in ("train", "valid")
        for index in range(24)
    ]
    return zlib.crc32("\n".join(map(description, games)).encode())


def test_the_same_seed_gives_the_same_scenes_everywhere():
    # The same on Python 3.10 to 3.13. It changes only with the catalog and the generator.
    assert checksum() == CHECKSUM
    code = "from tests.sad.envs.test_household_generator import checksum; print(checksum())"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(other.stdout) == CHECKSUM


def test_different_seeds_give_different_scenes():
    scenes = {
        description(generate(SIMPLE, index, split="train", seed=seed, size="small"))
        for seed in (0, 1)
        for index in range(50)
    }
    assert len(scenes) == 100


def test_no_scene_is_in_both_splits_even_across_seeds():
    def scenes(split: str, seeds: range) -> set[str]:
        games = [generate(TASK_TYPES[i % 6], i, split=split, seed=seed, size="small") for seed in seeds for i in range(120)]
        return {description(game._replace(task=None, goal=None)) for game in games}

    train, valid = scenes("train", range(4)), scenes("valid", range(4))
    assert not train & valid
    assert len(train) > 450 and len(valid) > 450  # most scenes are distinct


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10**4), st.sampled_from(["small", "full"]), st.sampled_from(["train", "valid"]))
def test_scenes_suit_their_task(seed, index, size, split):
    game = generate(TASK_TYPES[index % 6], index, split=split, seed=seed, size=size)
    scene, goal = game.scene, game.goal
    kinds = [receptacle.kind for receptacle in scene.receptacles]
    assert len(kinds) in (range(4, 7) if size == "small" else range(5, 34))
    assert len({r.name for r in scene.receptacles}) == len(kinds) and len({o.name for o in scene.objects}) == len(
        scene.objects
    )
    assert not HouseholdState(scene).satisfies(goal)
    assert sum(obj.kind == goal.object for obj in scene.objects) >= (2 if goal.type == TWO else 1)
    if goal.type == LIGHT:
        assert sum(obj.kind == LAMP for obj in scene.objects) == 1
    else:
        assert goal.target in kinds and goal.object in CAN_CONTAIN[goal.target]
    for receptacle, inside in zip(scene.receptacles, scene.contents):
        for obj in (scene.objects[o] for o in inside):
            assert receptacle.kind in USUAL_PLACES[obj.kind]
            if goal.type in (SIMPLE, TWO):  # no object is at the target at the start
                assert (obj.kind, receptacle.kind) != (goal.object, goal.target)
    assert all(any(o in inside for inside in scene.contents) for o in range(len(scene.objects)))


def test_usual_places_can_contain_the_object():
    pairs = [(kind, place) for kind, places in USUAL_PLACES.items() if kind not in FIXTURES for place in places]
    assert all(kind in CAN_CONTAIN[place] for kind, place in pairs)
    for room in ROOMS.values():
        assert set(room.small_receptacles) | set(room.receptacles) <= set(CAN_CONTAIN)
        assert set(room.small_objects) <= set(room.objects) <= set(USUAL_PLACES)


def test_tasks_are_distinct_and_alternate_types():
    tasks = sad.envs.make("household", size="small", tasks=60).tasks
    assert len({task.id for task in tasks}) == 60
    assert [task.type for task in tasks[:6]] == list(TASK_TYPES) and sum(task.type == TWO for task in tasks) == 10
    assert {task.type for task in sad.envs.make("household", tasks=4, types=[LIGHT]).tasks} == {LIGHT}
    more = sad.envs.make("household", size="small", tasks=90).tasks
    assert more[:60] == tasks  # a larger number keeps the first tasks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "palace"}, "name: expected one of .*household.*, got 'palace'"),
        ({"split": "test"}, "split: expected one of train, valid, got 'test'"),
        ({"size": "huge"}, "size: expected one of small, full, got 'huge'"),
        ({"types": ["dance"]}, "types: expected one of pick_and_place_simple"),
        ({"types": []}, "types: expected at least one, got none"),
        ({"tasks": 0}, "tasks: expected at least one, got 0"),
        ({"root": "data"}, "root: expected None"),
    ],
)
def test_errors_name_the_bad_argument(arguments, message):
    with pytest.raises(sad.InputError, match=message):
        sad.envs.make(**{"name": "household", **arguments})
