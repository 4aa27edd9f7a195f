"""Rows of public data sets and logs of programs, written by hand from their documentation: the label of every word."""

from __future__ import annotations

import json

import pytest

import sad

from .chat_templates import tokenizer_of
from .test_sources import TEMPLATE, USER, labelled

TASK = USER["content"]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


def called(place: str) -> dict:
    arguments = json.dumps({"place": place})
    return {"id": "c1", "type": "function", "function": {"name": "look", "arguments": arguments}}


def row(role: str, content: str, **more) -> dict:
    """A message with the null columns of a table."""
    return {"role": role, "content": content, "name": None, "tool_calls": None, "tool_call_id": None, **more}


def nebius(role: str, text: str, **more) -> dict:
    return {"cutoff_date": None, "mask": False, "role": role, "system_prompt": None, "text": text, **more}


SERVER_TOOLS = [
    {"type": "text", "text": "why 1"},
    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "do 1"}},
    {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"type": "web_search_result", "title": "seen 1"}]},
    {"type": "text", "text": "do 2"},
]
TERMINUS = {"analysis": "why 1", "plan": "why 2", "commands": [{"keystrokes": "do 1"}], "task_complete": False}
GLAIVE = (
    f'USER: {TASK}\n\n\nASSISTANT: <functioncall> {{"name": "look", "arguments": \'{{"place": "do 1"}}\'}} <|endoftext|>'
    '\n\n\nFUNCTION RESPONSE: {"place": "seen 1"}\n\n\nASSISTANT: do 2 <|endoftext|>\n\n\n'
)
UPDATES = [
    {"agent": {"messages": [{"type": "ai", "content": "why 1", "tool_calls": [{"name": "look", "args": {"at": "do 1"}}]}]}},
    {"tools": {"messages": [{"type": "tool", "content": "seen 1", "name": "look", "tool_call_id": "t"}]}},
    {"agent": {"messages": [{"type": "ai", "content": "do 2"}]}},
]
ADP = [
    {"class_": "text_observation", "content": TASK, "source": "user"},
    {"class_": "api_action", "function": "look", "kwargs": {"place": "do 1"}, "description": "why 1"},
    {"class_": "text_observation", "content": "seen 1", "source": "environment"},
    {"class_": "code_action", "language": "python", "content": "do 2", "description": "why 2"},
    {"class_": "text_observation", "content": "seen 2", "source": "environment"},
    {"class_": "message_action", "content": "do 3", "description": "why 3"},
]
GEMINI = [
    {"role": "user", "parts": [{"text": TASK}]},
    {
        "role": "model",
        "parts": [{"text": "why 1", "thought": True}, {"functionCall": {"name": "look", "args": {"at": "do 1"}}}],
    },
    {"role": "user", "parts": [{"functionResponse": {"name": "look", "response": {"result": "seen 1"}}}]},
    {"role": "model", "parts": [{"text": "do 2"}, {"thoughtSignature": "x"}]},
]
# The words of the model are `why 1`, ... (reasoning) and `do 1`, ... (actions); `seen 1`, ... come from the environment.
LOGS = {
    "SWE-agent trajectories of Nebius": [
        {
            "instance_id": "i",
            "target": True,
            "trajectory": [
                nebius("system", "", system_prompt="seen 1"),
                nebius("user", TASK),
                nebius("ai", "bad example\n```\nbad\n```", mask=True),
                nebius("ai", "why 1\n```\ndo 1\n```"),
                nebius("user", "seen 2"),
                nebius("ai", "why 2\n```\ndo 2\n```"),
            ],
        }
    ],
    "OpenHands trajectories of SWE-rebench": [
        {
            "instance_id": "i",
            "trajectory": [
                row("user", TASK),
                row("assistant", "why 1", tool_calls=[called("do 1")]),
                row("tool", "seen 1", name="look", tool_call_id="c1"),
                row("assistant", "do 2"),
            ],
            "tools": TOOLS,
            "resolved": 1,
        }
    ],
    "LangGraph updates": UPDATES,
    "Anthropic server tools": [{"messages": [USER, {"role": "assistant", "content": SERVER_TOOLS}]}],
    "ms-swift pairs": [
        {
            "system": "seen 1",
            "conversation": [{"human": TASK, "assistant": "do 1"}, {"human": "seen 2", "assistant": "do 2"}],
        }
    ],
    "Capybara pairs": [{"source": "x", "conversation": [{"input": TASK, "output": "do 1"}]}],
    "xLAM": [
        {
            "id": 0,
            "query": TASK,
            "answers": json.dumps([{"name": "look", "arguments": {"place": "do 1"}}]),
            "tools": json.dumps([{"name": "look", "description": "d", "parameters": {"place": {"type": "str"}}}]),
        }
    ],
    "Glaive": [{"system": "SYSTEM: Use functions. seen 2", "chat": GLAIVE}],
    "Agent Data Protocol": [{"id": "x", "content": ADP, "details": {}}],
    "Gemini": [{"systemInstruction": {"parts": [{"text": "seen 2"}]}, "contents": GEMINI}],
    "OpenAI batch, joined": [
        {
            "custom_id": "r",
            "body": {"model": "m", "messages": [USER]},
            "response": {"status_code": 200, "body": {"choices": [{"message": {"role": "assistant", "content": "do 1"}}]}},
        }
    ],
    "Langfuse": [{"id": "t", "input": [USER], "output": {"role": "assistant", "content": "do 1"}, "metadata": {}}],
    "MLflow": [
        {
            "request": json.dumps({"messages": [USER]}),
            "response": json.dumps({"choices": [{"message": {"role": "assistant", "content": "do 1"}}]}),
        }
    ],
    "a trace with tools": [
        {
            "input": {"messages": [USER], "tools": TOOLS},
            "output": {"role": "assistant", "content": None, "reasoning": "why 1", "tool_calls": [called("do 1")]},
        }
    ],
    "Terminus in ATIF": [
        {
            "schema_version": "ATIF-v1.4",
            "steps": [
                {"step_id": 1, "source": "user", "message": TASK},
                {
                    "step_id": 2,
                    "source": "agent",
                    "message": json.dumps(TERMINUS, indent=2),
                    "observation": {"results": [{"content": "seen 1"}]},
                },
            ],
        }
    ],
    "completions of vLLM": [
        {
            "request": {"model": "m", "prompt": f"<|im_start|>user\n{TASK}<|im_end|>\n<|im_start|>assistant\n"},
            "response": {"choices": [{"index": 0, "text": "<think>\nwhy 1\n</think>\n\ndo 1", "finish_reason": "stop"}]},
        }
    ],
}


@pytest.mark.parametrize("name", LOGS)
def test_every_word_has_its_label(name, make_tokenizer, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in LOGS[name]), encoding="utf-8")
    [trajectory] = sad.read_trajectories(path)
    text, reason, act = labelled(trajectory, make_tokenizer(chat_template=TEMPLATE))
    spoken, whole = json.dumps(LOGS[name]), "".join(reason + act)
    for number in (1, 2, 3):
        for word, own in ((f"why {number}", reason), (f"do {number}", act)):
            assert (word in spoken) is any(word in span for span in own), word
        assert f"seen {number}" not in whole and (f"seen {number}" in spoken) is (f"seen {number}" in text)
    assert TASK in text or name == "LangGraph updates"
    assert TASK not in whole and "bad" not in whole and "example" not in whole


RENDERED = {
    "a preamble of harmony": (
        "gptoss",
        "<|start|>user<|message|>task<|end|><|start|>assistant<|channel|>commentary<|message|>why<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"a": "do"}<|call|>',
        ["<|channel|>commentary<|message|>why<|end|>"],
        ['<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"a": "do"}<|call|>'],
    ),
    "a tool of harmony in the analysis channel": (
        "gptoss",
        "<|start|>user<|message|>task<|end|><|start|>assistant<|channel|>analysis<|message|>why<|end|><|start|>assistant"
        "<|channel|>analysis to=python code<|message|>do<|call|><|start|>python to=assistant<|channel|>analysis<|message|>"
        "seen<|end|><|start|>assistant<|channel|>final<|message|>said<|return|>",
        ["<|channel|>analysis<|message|>why<|end|>"],
        ["<|channel|>analysis to=python code<|message|>do<|call|>", "<|channel|>final<|message|>said<|return|>"],
    ),
    "Llama 4": (
        "llama",
        "<|header_start|>user<|header_end|>\n\ntask<|eot|><|header_start|>assistant<|header_end|>\n\nwhy<|python_start|>do"
        "<|python_end|><|eom|><|header_start|>ipython<|header_end|>\n\nseen<|eot|><|header_start|>assistant<|header_end|>"
        "\n\nsaid<|eot|>",
        ["why"],
        ["<|python_start|>do<|python_end|><|eom|>", "said<|eot|>"],
    ),
    "Granite": (
        "phi",
        "<|start_of_role|>user<|end_of_role|>task<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|><|tool_call|>[do]"
        "<|end_of_text|>\n<|start_of_role|>tool<|end_of_role|>seen<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>said<|end_of_text|>\n",
        [],
        ["<|tool_call|>[do]<|end_of_text|>", "said<|end_of_text|>"],
    ),
    "DeepSeek V3.1": (
        "deepseek",
        "<｜User｜>task<｜Assistant｜></think>why<｜tool▁calls▁begin｜>do<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
        "<｜tool▁output▁begin｜>seen<｜tool▁output▁end｜><｜tool▁output▁begin｜>more<｜tool▁output▁end｜>said<｜end▁of▁sentence｜>",
        ["why"],
        ["<｜tool▁calls▁begin｜>do<｜tool▁calls▁end｜><｜end▁of▁sentence｜>", "said<｜end▁of▁sentence｜>"],
    ),
    "an empty thought before a call": (
        "",
        "<|im_start|>user\ntask<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nwhy\n<tool_call>\ndo\n</tool_call>"
        "<|im_end|>\n",
        ["why\n"],
        ["<tool_call>\ndo\n</tool_call><|im_end|>"],
    ),
}


@pytest.mark.parametrize("name", RENDERED)
def test_rendered_text(name):
    family, text, reason, act = RENDERED[name]
    found = labelled(sad.Trajectory("t", text), tokenizer_of(family, text + "<|im_end|>"))
    assert found[1:] == (reason, act)


def test_what_answers_a_call_of_deepseek_is_an_observation():
    family, text, _, _ = RENDERED["DeepSeek V3.1"]
    found = sad.segment(text, "chat", tokenizer=tokenizer_of(family, text))
    assert [found.text[start:end] for start, end, _ in found.observations] == ["seen", "more"]


def test_variables_of_the_template(make_tokenizer):
    tokenizer = make_tokenizer(chat_template="{{ effort }}" + TEMPLATE)
    messages = [USER, {"role": "assistant", "content": "Done."}]
    [trajectory] = sad.read_trajectories([{"messages": messages, "chat_template_kwargs": {"effort": "high", "no": None}}])
    text, _, act = labelled(trajectory, tokenizer)
    assert text.startswith("high") and act == ["Done.<|im_end|>"]
    for wrong, error in (
        ([1], "an object, got"),
        ({"tokenize": True, "messages": []}, "variables of the template, .* got messages, tokenize"),
    ):
        trajectory.extra["chat_template_kwargs"] = wrong
        with pytest.raises(sad.InputError, match=f"chat_template_kwargs: expected {error}"):
            trajectory.segmented(tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (
            {"contents": [{"role": "user", "parts": [{"inlineData": {}}]}]},
            r"contents\[0\].parts\[0\]: expected a part with text",
        ),
        (
            {"id": "x", "content": [ADP[0], {"class_": "image_observation"}]},
            r"content\[1\].class_: expected an item of class",
        ),
        ({"query": "q", "answers": "[]", "tools": "[]"}, "answers: expected a list of calls"),
        (
            {"conversation": [{"human": "a", "assistant": "b"}, {"human": "c"}]},
            "expected a trajectory with 'text' or 'messages'",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(record, error):
    with pytest.raises(sad.InputError, match=error):
        sad.read_trajectories([record])
