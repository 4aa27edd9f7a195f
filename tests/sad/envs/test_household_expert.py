"""The expert solves what the generator draws, from text alone, and writes transcripts that can be learnt from."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sad
from sad.envs.household.expert import HouseholdExpert, play_expert
from sad.envs.household.goal import TASK_TYPES, TEMPLATES, Goal
from sad.envs.household.reading import goal_of, places_of, sight_of


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**9),
    st.sampled_from(["train", "valid"]),
    st.sampled_from(["small", "full"]),
    st.sampled_from(TASK_TYPES),
)
def test_every_task_is_solved(seed, split, size, task_type):
    env = sad.envs.make("household", split=split, seed=seed, size=size, tasks=1, types=[task_type])
    trajectory = play_expert(env, env.tasks[0])
    assert trajectory.success, trajectory.text
    assert trajectory.extra["steps"] <= (14 if size == "small" else 45)


def test_transcripts_are_lines_of_the_sad_format():
    env = sad.envs.make("household", seed=5, size="small", tasks=24)
    for task in env.tasks:
        trajectory = play_expert(env, task)
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


def test_the_reasoning_names_what_the_action_needs():
    """The action is a copy of what the line before it decided, which is what makes it learnable."""
    env = sad.envs.make("household", seed=6, size="full", tasks=36)
    for task in env.tasks:
        text = play_expert(env, task).text
        for reasoning, action in re.findall(r"Reasoning: (.*)\nAction: (.*)\n", text):
            named = re.findall(r"[a-z]+ \d+", action)
            assert all(re.search(rf"\b{name}\b", reasoning) for name in named), (reasoning, action)
            assert len(reasoning.split()) <= 30


def test_the_expert_needs_no_more_than_the_text():
    """Fed with a written record instead of the world, it does the same again."""
    env = sad.envs.make("household", seed=8, size="full", tasks=6)
    for task in env.tasks:
        text = play_expert(env, task).text
        turns = re.split(r"Reasoning: .*\nAction: .*\n", text)
        moves = re.findall(r"Reasoning: (.*)\nAction: (.*)\n", text)
        expert = HouseholdExpert(turns[0])
        assert [tuple(expert.act(turn.strip("\n"))) for turn in turns[:-1]] == moves


def test_an_episode_can_be_given_up():
    env = sad.envs.make("household", seed=9, size="small", tasks=1)
    trajectory = play_expert(env, env.tasks[0], max_steps=2)
    assert trajectory.success is False and trajectory.extra["steps"] == 2


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_goals_are_read_from_both_wordings(task_type):
    place = "desklamp" if "look" in task_type else "cabinet"
    for template in TEMPLATES[task_type]:
        asked = template.format(thing="mug", place=place)
        assert goal_of(f"You see nothing.\nYour task is to: {asked}") == goal_of(asked) == Goal(task_type, "mug", place)


def test_text_that_cannot_be_read():
    with pytest.raises(sad.InputError, match=r"a goal in one of the household's wordings, got 'sing a song\."):
        HouseholdExpert("You are in a room.\nYour task is to: sing a song.")
    assert sight_of("Nothing happens.") is None and sight_of("You close the fridge 1.") is None
    assert places_of("You see a bed 1, a desk 12, and a shelf 1.\nYour task is to: put a mug 3 in desk.") == [
        "bed 1",
        "desk 12",
        "shelf 1",
    ]
