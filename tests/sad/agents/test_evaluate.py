"""Metrics of hand-written episodes, computed by hand."""

from __future__ import annotations

import json

import pytest

from sad.agents.evaluate import evaluate
from sad.errors import InputError
from sad.trajectories.trajectory import Trajectory

from .toy import toy_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer()


def episode(task: str, lines: str, success: bool, kind: str = "kind0", **extra) -> Trajectory:
    extra = {"type": kind, "end": "won" if success else "max_steps", "decoding": "free"} | extra
    return Trajectory(id=task, text=f"You see door 1.\nYour task is to: {task}.\n{lines}", success=success, extra=extra)


TEACHER = [
    episode("a", "Reasoning: open door 1 next.\nAction: open door 1\nYou win.\n", True),
    episode(
        "b",
        "Reasoning: look\nAction: look\nNothing happens.\nReasoning: open\nAction: open door 1\nYou win.\n",
        True,
        "kind1",
    ),
]
STUDENT = [
    episode("b", "Action: look\nNothing happens.\n", False, "kind1"),
    episode("a", "Reasoning: open door 2 next.\nAction: open door 1\nYou win.\n", True),
]


def test_metrics_by_hand(tokenizer) -> None:
    def length(line: str) -> int:
        return len(tokenizer(line)["input_ids"])

    result = evaluate(TEACHER, tokenizer)
    reasoning = [length("Reasoning: open door 1 next.\n"), length("Reasoning: look\nReasoning: open\n")]
    assert result["reasoning_length"] == sum(reasoning) / 2
    assert (result["tasks"], result["successes"], result["success_rate"]) == (2, 2, 1.0)
    assert result["steps"] == (2 + 4) / 2 and result["actions"] == (1 + 2) / 2
    assert result["cot_match"] is None and result["ends"] == {"won": 2}
    assert result["by_type"]["kind1"]["steps"] == 4
    assert json.loads(json.dumps(result)) == result


def test_cot_match_pairs_by_task_not_by_position(tokenizer) -> None:
    result = evaluate(STUDENT, tokenizer, reference=TEACHER)
    tokens = len(tokenizer("Reasoning: open door 1 next.\n")["input_ids"])
    # task a: the student has all tokens of the teacher except the number; task b: the student has no reasoning
    assert result["by_type"]["kind0"]["cot_match"] == pytest.approx((tokens - 1) / tokens)
    assert result["by_type"]["kind1"]["cot_match"] == 0
    assert result["cot_match"] == pytest.approx((tokens - 1) / tokens / 2)
    assert result["ends"] == {"won": 1, "max_steps": 1} and result["success_rate"] == 0.5


def test_invalid_actions_env_metrics_and_intervals(tokenizer) -> None:
    one, two = "Action: look\n", "Action: look\nNothing happens.\nAction: look\n"
    trajectories = [
        episode("a", one, True, invalid_actions=0, metrics={"reward": 1.0}),
        episode("b", two, False, "kind1", invalid_actions=1, metrics={"reward": 0.25}),
        episode("c", "", False, "kind1", invalid_actions=0),  # no action, so there are no metrics
    ]
    result = evaluate(trajectories, tokenizer)
    assert (result["invalid_actions"], result["invalid_rate"]) == (1, 1 / 3)
    assert result["invalid_rate_interval"] == [0.0, 0.5] and result["steps_interval"] == [0.0, 2.0]
    assert result["metrics"]["reward"]["mean"] == pytest.approx(1.25 / 3)
    assert (
        result["metrics"]["reward"]["interval"] == [0.0, 1.0]
        and result["by_type"]["kind1"]["metrics"]["reward"]["mean"] == 0.125
    )
    assert result["cot_match_interval"] is None
    no_actions = evaluate([episode("a", "", False, invalid_actions=0)], tokenizer)
    assert no_actions["invalid_rate"] is None and no_actions["actions"] == 0
    assert evaluate(TEACHER, tokenizer)["invalid_actions"] is None, "the trajectories do not report it"


@pytest.mark.parametrize(
    ("trajectories", "reference", "word"),
    [
        ([], None, "at least one"),
        ([Trajectory(id="a", text="x\n")], None, "success"),
        ([TEACHER[0], TEACHER[0]], None, "one per task"),
        ([TEACHER[0], episode("b", "", True, decoding="admissible")], None, "not comparable"),
        (TEACHER, TEACHER[:1], "such as 'b'"),
    ],
)
def test_invalid_input(tokenizer, trajectories, reference, word: str) -> None:
    with pytest.raises(InputError, match=word):
        evaluate(trajectories, tokenizer, reference=reference)
