"""The household's goals, refused calls, and its rules on random walks."""

from __future__ import annotations

import copy
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sad
from sad.envs.household.game import CLEAN, COOL, HEAT, LIGHT, SIMPLE, TASK_TYPES, TWO, Goal

from .kitchen import kitchen

NOTHING = "Nothing happens."
APPLE = ("go to countertop 1", "take apple 1 from countertop 1")
TO_FRIDGE = ("go to fridge 1", "open fridge 1", "put apple 1 in/on fridge 1")
SECOND = ("go to countertop 1", "take apple 2 from countertop 1", "go to fridge 1", "put apple 2 in/on fridge 1")
BOOK = ("go to desk 1", "take book 1 from desk 1")


@pytest.mark.parametrize(
    ("goal", "actions", "won"),
    [
        (Goal(SIMPLE, "apple", "fridge"), (*APPLE, *TO_FRIDGE), True),
        (Goal(SIMPLE, "apple", "microwave"), (*APPLE, *TO_FRIDGE), False),
        (Goal(TWO, "apple", "fridge"), (*APPLE, *TO_FRIDGE, *SECOND), True),
        (Goal(TWO, "apple", "fridge"), (*APPLE, *TO_FRIDGE), False),
        (Goal(CLEAN, "apple", "fridge"), (*APPLE, "go to sinkbasin 1", "clean apple 1 with sinkbasin 1", *TO_FRIDGE), True),
        (Goal(CLEAN, "apple", "fridge"), (*APPLE, *TO_FRIDGE), False),
        (Goal(HEAT, "apple", "fridge"), (*APPLE, "go to microwave 1", "heat apple 1 with microwave 1", *TO_FRIDGE), True),
        # a heated object is no longer cool
        (
            Goal(COOL, "apple", "fridge"),
            (
                *APPLE,
                "go to fridge 1",
                "cool apple 1 with fridge 1",
                "go to microwave 1",
                "heat apple 1 with microwave 1",
                *TO_FRIDGE,
            ),
            False,
        ),
        # a cooled object is no longer hot
        (
            Goal(HEAT, "apple", "fridge"),
            (
                *APPLE,
                "go to microwave 1",
                "heat apple 1 with microwave 1",
                "go to fridge 1",
                "cool apple 1 with fridge 1",
                "open fridge 1",
                "put apple 1 in/on fridge 1",
            ),
            False,
        ),
        (
            Goal(COOL, "apple", "countertop"),
            (*APPLE, "go to fridge 1", "cool apple 1 with fridge 1", "go to countertop 1", "put apple 1 in/on countertop 1"),
            True,
        ),
        # the clean apple is not at the target, and the apple at the target is not clean
        (
            Goal(CLEAN, "apple", "countertop"),
            (*APPLE, "go to sinkbasin 1", "clean apple 1 with sinkbasin 1", *TO_FRIDGE),
            False,
        ),
        (Goal(LIGHT, "book", "desklamp"), (*BOOK, "use desklamp 1"), True),
        (Goal(LIGHT, "book", "desklamp"), ("go to desk 1", "use desklamp 1"), False),
        (Goal(LIGHT, "book", "desklamp"), ("go to desk 1", "use desklamp 1", "take book 1 from desk 1"), True),
        (Goal(LIGHT, "book", "desklamp"), (*BOOK, "go to fridge 1"), False),
        # the lamp must be at the agent's location
        (Goal(LIGHT, "apple", "desklamp"), ("go to desk 1", "use desklamp 1", *APPLE), False),
        (Goal(LIGHT, "apple", "desklamp"), ("go to desk 1", "use desklamp 1", *APPLE, "go to desk 1"), True),
    ],
)
def test_success_is_judged_by_the_state(goal, actions, won):
    env = kitchen(goal)
    env.reset(env.tasks[0])
    *before, end = [env.step(action) for action in actions]
    assert not any(step.done or step.info["won"] or step.reward for step in before)
    assert (end.done, end.info["won"], end.reward) == (won, won, float(won))


def test_steps_after_the_end_and_unknown_tasks_are_refused():
    env = kitchen(Goal(LIGHT, "book", "desklamp"))
    with pytest.raises(sad.InputError, match=r"env\.reset\(task\) first"):
        env.step("look")
    env.reset(env.tasks[0])
    for action in (*BOOK, "use desklamp 1"):
        env.step(action)
    with pytest.raises(sad.InputError, match="one that is over"):
        env.step("look")
    with pytest.raises(sad.InputError, match="one of the 1 tasks of this env, got 'elsewhere'"):
        env.reset(env.tasks[0]._replace(id="elsewhere"))
    with pytest.raises(sad.InputError, match="got a str"):
        env.reset("kitchen")
    env.reset(env.tasks[0])
    with pytest.raises(sad.InputError, match="expected text, got a NoneType"):
        env.step(None)


def object_locations(env) -> list[tuple[str, str]]:
    """Returns every object with its receptacle."""
    state, objects = env._state, env._state.scene.objects
    locations = [(objects[o].name, r.name) for r, inside in zip(state.scene.receptacles, state.contents) for o in inside]
    return sorted(locations + ([(objects[state.held].name, "hand")] if state.held is not None else []))


def conceivable(env) -> set[str]:
    """Returns every command of the grammar with the names of this scene."""
    objects = [obj.name for obj in env._state.scene.objects]
    places = [place.name for place in env._state.scene.receptacles]
    commands = {f"{verb} {name}" for verb in ("open", "close", "go to", "examine", "use") for name in objects + places}
    for obj in objects:
        commands |= {f"take {obj} from {p}" for p in places} | {f"put {obj} in/on {p}" for p in places}
        commands |= {f"{verb} {obj} with {p}" for verb in ("clean", "heat", "cool") for p in places}
        commands |= {f"slice {obj} with {other}" for other in objects}
    return commands | {"look", "inventory"}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["small", "full"]), st.sampled_from(TASK_TYPES))
def test_only_admissible_commands_have_an_effect_and_objects_never_get_lost(seed, size, task_type):
    env = sad.envs.make("household", seed=seed, size=size, tasks=1, types=[task_type])
    env.reset(env.tasks[0])
    rng = random.Random(seed)
    names = sorted(obj.name for obj in env._state.scene.objects)
    for _ in range(60):
        admissible = env.admissible_commands
        assert admissible == sorted(set(admissible)) and set(admissible) <= conceivable(env)
        before = object_locations(env)
        for command in rng.sample(sorted(conceivable(env) - set(admissible)), 20):
            assert env.step(command).observation == NOTHING
        assert object_locations(env) == before and env.admissible_commands == admissible
        # each verb is equally likely, so that `go to` does not dominate
        by_verb: dict[str, list[str]] = {}
        for command in admissible:
            by_verb.setdefault(command.split()[0], []).append(command)
        step = env.step(rng.choice(by_verb[rng.choice(sorted(by_verb))]))
        assert step.observation != NOTHING and "\n" not in step.observation
        assert sorted(name for name, _ in object_locations(env)) == names  # each object once
        if step.done:
            break


def test_copies_run_independent_episodes():
    env = sad.envs.make("household", seed=3, size="small", tasks=2)
    copies = [copy.copy(env), copy.copy(env)]
    firsts = [one.reset(env.tasks[0]) for one in copies]
    place = next(command for command in copies[0].admissible_commands if command.startswith("go to"))
    walked = copies[0].step(place).observation
    assert firsts[0] == firsts[1] == env.reset(env.tasks[0])
    assert place in copies[1].admissible_commands and place not in copies[0].admissible_commands
    assert copies[1].step(place).observation == walked
