"""The expert solves generated tasks from text alone, and its transcripts are valid training data."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sad
from sad.envs.household.expert import HouseholdExpert, rollout_expert
from sad.envs.household.game import GOAL_TEMPLATES, TASK_TYPES, Goal
from sad.envs.household.text import parse_goal, parse_receptacles, parse_view


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**9),
    st.sampled_from(["train", "valid"]),
    st.sampled_from(["small", "full"]),
    st.sampled_from(TASK_TYPES),
)
def test_every_task_is_solved(seed, split, size, task_type):
    env = sad.envs.make("household", split=split, seed=seed, size=size, tasks=1, types=[task_type])
    trajectory = rollout_expert(env, env.tasks[0])
    assert trajectory.success, trajectory.text
    assert trajectory.extra["steps"] <= (14 if size == "small" else 45)


def test_transcripts_are_in_the_sad_format():
    env = sad.envs.make("household", seed=5, size="small", tasks=24)
    for task in env.tasks:
        trajectory = rollout_expert(env, task)
        found = trajectory.segmented()
        kinds = [span.kind for span in found.spans]
        steps = trajectory.extra["steps"]
        assert kinds == [sad.Span.REASON, sad.Span.ACT] * steps and not found.unparsed
        assert "\n\n" not in trajectory.text and trajectory.text.endswith("\n")
        assert trajectory.text.startswith(env.reset(task) + "\nReasoning: ")
        assert (trajectory.id, trajectory.env, trajectory.task, trajectory.format) == (
            task.id,
            "household",
            task.goal,
            "sad",
        )


def test_the_reasoning_names_the_objects_of_the_action():
    """Each name in an action is in the reasoning before it, so that a student can learn to copy it."""
    env = sad.envs.make("household", seed=6, size="full", tasks=36)
    for task in env.tasks:
        text = rollout_expert(env, task).text
        for reasoning, action in re.findall(r"Reasoning: (.*)\nAction: (.*)\n", text):
            named = re.findall(r"[a-z]+ \d+", action)
            assert all(re.search(rf"\b{name}\b", reasoning) for name in named), (reasoning, action)
            assert len(reasoning.split()) <= 30


def test_the_expert_needs_only_the_text():
    """With recorded observations instead of an environment, it makes the same moves."""
    env = sad.envs.make("household", seed=8, size="full", tasks=6)
    for task in env.tasks:
        text = rollout_expert(env, task).text
        turns = re.split(r"Reasoning: .*\nAction: .*\n", text)
        moves = re.findall(r"Reasoning: (.*)\nAction: (.*)\n", text)
        expert = HouseholdExpert(turns[0])
        assert [tuple(expert.act(turn.strip("\n"))) for turn in turns[:-1]] == moves


def test_max_steps_ends_an_episode():
    env = sad.envs.make("household", seed=9, size="small", tasks=1)
    trajectory = rollout_expert(env, env.tasks[0], max_steps=2)
    assert trajectory.success is False and trajectory.extra["steps"] == 2


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_goals_are_parsed_from_both_templates(task_type):
    target = "desklamp" if "look" in task_type else "cabinet"
    for template in GOAL_TEMPLATES[task_type]:
        goal = template.format(object="mug", target=target)
        assert parse_goal(f"You see nothing.\nYour task is to: {goal}") == parse_goal(goal) == Goal(task_type, "mug", target)


def test_text_that_cannot_be_parsed():
    with pytest.raises(sad.InputError, match=r"a goal in one of the household's templates, got 'sing a song\."):
        HouseholdExpert("You are in a room.\nYour task is to: sing a song.")
    assert parse_view("Nothing happens.") is None and parse_view("You close the fridge 1.") is None
    assert parse_receptacles("You see a bed 1, a desk 12, and a shelf 1.\nYour task is to: put a mug 3 in desk.") == [
        "bed 1",
        "desk 12",
        "shelf 1",
    ]
