"""Lines that open most trajectories and would be trained are named."""

from __future__ import annotations

import pytest

import sad

FEW_SHOT = "Solve the task.\nTask: find the pen\nThought: Pens are on desks.\nAction: go to desk\nHere is yours.\n"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def own(number: int) -> str:
    return f"Task: find mug {number}\nThought: It is far.\nAction: go to sink {number}\n"


def warnings_of(trajectories, tokenizer) -> list[str]:
    said: list[str] = []
    sad.encode_all(trajectories, tokenizer, say=said.append)
    return said


def test_few_shot_examples_are_named(tokenizer):
    texts = [FEW_SHOT + own(number) for number in range(6)] + [own(9)]
    [said] = warnings_of([sad.Trajectory(text=text, format="react") for text in texts], tokenizer)
    assert said.startswith("warning: 6 of 7 trajectories open with the same 5 lines, and ")
    assert "'Thought: Pens are on desks.', 'Action: go to desk'" in said
    assert f'"prompt_chars": {len(FEW_SHOT)}' in said
    fixed = [sad.Trajectory(text=text, format="react", prompt_chars=len(FEW_SHOT)) for text in texts[:6]]
    assert warnings_of(fixed, tokenizer) == []


def test_demonstrations_in_messages_are_named(make_tokenizer):
    demo = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "Thought: easy\nAction: say 4"}]
    conversations = [
        [
            *demo,
            {"role": "user", "content": f"{n}+1?"},
            {"role": "assistant", "content": f"Thought: so\nAction: say {n + 1}"},
        ]
        for n in range(5)
    ]
    tokenizer = make_tokenizer(chat_template=CHATML)
    [said] = warnings_of([sad.Trajectory(messages=messages) for messages in conversations], tokenizer)
    assert "5 of 5 trajectories open with the same" in said and "'Thought: easy'" in said


@pytest.mark.parametrize(
    "texts",
    [
        [own(number) for number in range(9)],  # the same thought after another task
        ["Find a mug.\nThought: I look.\nAction: look\n"] * 9,  # one task many times
        [FEW_SHOT + own(number) for number in range(3)],  # too few to tell
        [FEW_SHOT + own(number) for number in range(4)] + [own(number) for number in range(9)],  # not most
    ],
)
def test_what_trajectories_may_share(texts, tokenizer):
    assert warnings_of([sad.Trajectory(text=text, format="react") for text in texts], tokenizer) == []


def test_several_samples_of_a_task_count_once(tokenizer):
    text = "Find a mug.\nThought: I look.\nAction: look\n"
    trajectories = [sad.Trajectory(text=f"{text}Room {n}\n", format="react", task="mug") for n in range(8)]
    assert warnings_of(trajectories, tokenizer) == []
