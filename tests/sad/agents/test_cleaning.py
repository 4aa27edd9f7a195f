"""`clean` normalizes the form of a turn, keeps its words, and is idempotent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sad
from sad.agents.cleaning import clean
from sad.trajectories.segment import segment
from sad.trajectories.spans import SpanKind

PIECES = [
    "Reasoning:",
    "Action:",
    "Answer:",
    "**",
    "`",
    "Thought 1:",
    " ",
    "\n",
    "go to x",
    ".",
    '"',
    "\r\n",
    "```",
    "- ",
    ":",
]


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("Reasoning: I need it.\nAction: go to desk 1\n", "Reasoning: I need it.\nAction: go to desk 1\n"),
        ("**Thought 1:** hm\n\n**Action 1:** `go to desk 1`\n", "Reasoning: hm\nAction: go to desk 1\n"),
        ("thought: a\r\n  ACTION : go to desk 1.  \r\n", "Reasoning: a\nAction: go to desk 1\n"),
        (
            "Reasoning: First this. Action: go on. Reasoning: then",
            "Reasoning: First this.\nAction: go on\nReasoning: then\n",
        ),
        ("Reasoning: two\nlines\nAction:\nlook\n", "Reasoning: two lines\nAction: look\n"),
        ("```text\nAction: look\n```\n", "Action: look\n"),
        ("Sure!\nAction: search[a: b.]\n", "Sure!\nAction: search[a: b.]\n"),
        ('Final Answer: "U.S."\n', "Answer: U.S.\n"),
        ('Answer: "A" and "B"\n', 'Answer: "A" and "B"\n'),
        ("Action:\nReasoning: late\nAction:\n", "Reasoning: late\n"),
        (" \n\n", ""),
    ],
)
def test_form_is_normalized(written: str, cleaned: str) -> None:
    assert clean(written) == cleaned


def test_admissible_commands_stay_unchanged() -> None:
    assert clean("Action: say 'hi.'\n", ["say 'hi.'"]) == "Action: say 'hi.'\n"
    assert clean("Action: 'wait.'\n", ["wait."]) == "Action: wait.\n"


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=14).map("".join))
def test_cleaning_is_idempotent_and_its_lines_are_the_spans(written: str) -> None:
    cleaned = clean(written)
    assert clean(cleaned) == cleaned
    found = [(cleaned[start:end], kind) for start, end, kind in segment(cleaned).spans]
    prefixes = {"Reasoning": SpanKind.REASON, "Action": SpanKind.ACT, "Answer": SpanKind.ACT}
    lines = [line for line in cleaned.splitlines(keepends=True) if line.split(":")[0] in prefixes]
    assert found == [(line, prefixes[line.split(":")[0]]) for line in lines]


def test_lines_of_the_expert_are_clean() -> None:
    env = sad.envs.make("household", tasks=6)
    for task in env.tasks:
        trajectory = env.expert(env, task, max_steps=50)
        written = "".join(trajectory.text[start:end] for start, end, _ in trajectory.segmented().spans)
        assert clean(written, ()) == written
