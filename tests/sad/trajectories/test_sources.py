"""Logs of other programs, written by hand from their documentation: what is recognized, read and labelled."""

from __future__ import annotations

import gzip
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sad
from sad.trajectories.segment import segment
from sad.trajectories.sources import base
from sad.trajectories.sources.base import Source, recognize

TEMPLATE = (  # ChatML with tools, thoughts and calls
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content is defined %}<think>\n{{ m.reasoning_content }}\n</think>\n{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def call(name: str, **arguments) -> str:
    function = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{function}\n</tool_call>"


USER = {"role": "user", "content": "Find the mug."}
OPENAI_CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sink"}'}}
LOOK = call("look", at="sink")
END = "<|im_end|>"

# name: (records of a file, what is recognized, reasoning, actions, what is only context)
SOURCES = {
    "openai": (
        [
            {
                "messages": [
                    {"role": "developer", "content": "Be brief."},
                    USER,
                    {"role": "assistant", "content": None, "refusal": None, "tool_calls": [OPENAI_CALL]},
                    {"role": "tool", "tool_call_id": "c1", "content": "a mug"},
                    {"role": "assistant", "content": "In the sink.", "tool_calls": []},
                ],
                "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
            }
        ],
        "chat conversations (OpenAI messages), 1 trajectory",
        [],
        [LOOK + END, "In the sink." + END],
        ["Be brief.", "a mug"],
    ),
    "openai-fine-tuning": (
        [
            {
                "messages": [
                    USER,
                    {"role": "assistant", "content": "Bad.", "weight": 0},
                    USER,
                    {"role": "assistant", "content": "Ok"},
                ]
            }
        ],
        "chat conversations (OpenAI messages), 1 trajectory",
        [],
        ["Ok" + END],
        ["Bad."],
    ),
    "openai-exchange": (
        [
            {
                "request": {"messages": [USER, {"role": "assistant", "content": "Earlier."}, USER]},
                "response": {"choices": [{"message": {"role": "assistant", "content": "Now.", "reasoning_content": "Hm."}}]},
            }
        ],
        "requests with their responses (OpenAI or Anthropic), 1 trajectory",
        ["<think>\nHm.\n</think>\n"],
        ["Now." + END],
        ["Earlier."],
    ),
    "responses": (
        [
            {
                "instructions": "Be brief.",
                "input": "Find the mug.",
                "output": [
                    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "I look."}]},
                    {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "sink"}'},
                    {"type": "function_call_output", "call_id": "c1", "output": "a mug"},
                    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "In the sink."}]},
                ],
            }
        ],
        "requests and responses (OpenAI Responses), 1 trajectory",
        ["<think>\nI look.\n</think>\n"],
        [LOOK + END, "In the sink." + END],
        ["Be brief.", "Find the mug.", "a mug"],
    ),
    "codex": (
        [
            {"type": "session_meta", "payload": {"id": "s1", "instructions": "Be brief."}},
            {
                "type": "response_item",
                "payload": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Go."}]},
            },
            {"type": "event_msg", "payload": {"type": "token_count"}},
            {
                "type": "response_item",
                "payload": {"type": "function_call", "name": "look", "arguments": "{}", "call_id": "c"},
            },
            {"type": "response_item", "payload": {"type": "function_call_output", "call_id": "c", "output": "a mug"}},
        ],
        "Codex sessions, 1 trajectory",
        [],
        [call("look") + END],
        ["Be brief.", "Go.", "a mug"],
    ),
    "anthropic": (
        [
            {
                "system": "Be brief.",
                "messages": [
                    {"role": "user", "content": "Find the mug."},
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "I look.", "signature": "c2ln"},
                            {"type": "text", "text": "Let me see."},
                            {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "sink"}},
                        ],
                    },
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "a mug"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "In the sink."}]},
                ],
                "tools": [{"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}],
            }
        ],
        "conversations with Anthropic blocks, 1 trajectory",
        ["<think>\nI look.\n</think>\n", "Let me see."],
        [LOOK + END, "In the sink." + END],
        ["Be brief.", "a mug", "Looks."],
    ),
    "claude-code": (
        [
            {"type": "summary", "summary": "Mugs", "leafUuid": "x"},
            {"type": "user", "sessionId": "s1", "uuid": "1", "message": {"role": "user", "content": "Find the mug."}},
            {
                "type": "assistant",
                "sessionId": "s1",
                "message": {"id": "m", "role": "assistant", "content": [{"type": "thinking", "thinking": "I look."}]},
            },
            {
                "type": "assistant",
                "sessionId": "s1",
                "message": {
                    "id": "m",
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "t", "name": "look", "input": {"at": "sink"}}],
                },
            },
            {
                "type": "user",
                "sessionId": "s1",
                "message": {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "a mug"}]},
            },
        ],
        "Claude Code sessions, 1 trajectory",
        ["<think>\nI look.\n</think>\n"],
        [LOOK + END],
        ["Find the mug.", "a mug"],
    ),
    "sharegpt": (
        [
            {
                "conversations": [
                    {"from": "human", "value": "Find the mug."},
                    {"from": "gpt", "value": "I look."},
                    {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "sink"}}'},
                    {"from": "observation", "value": "a mug"},
                    {"from": "gpt", "value": "In the sink."},
                ],
                "system": "Be brief.",
                "tools": '[{"name": "look", "parameters": {}}]',
            }
        ],
        "ShareGPT conversations, 1 trajectory",
        ["I look."],
        [LOOK + END, "In the sink." + END],
        ["Be brief.", "a mug"],
    ),
    "toolace": (
        [
            {
                "system": "Tools: look(at)",
                "conversations": [{"from": "user", "value": "Go."}, {"from": "assistant", "value": "[look(at=1)]"}],
            }
        ],
        "ShareGPT conversations, 1 trajectory",
        [],
        ["[look(at=1)]" + END],
        ["Tools: look(at)"],
    ),
    "swift": (
        [
            {
                "messages": [
                    USER,
                    {"role": "tool_call", "content": '{"name": "look", "arguments": {"at": "sink"}}'},
                    {"role": "tool_response", "content": "a mug"},
                    {"role": "assistant", "content": "Ok", "loss": False},
                ]
            }
        ],
        "chat conversations (OpenAI messages), 1 trajectory",
        [],
        [LOOK + END],
        ["a mug", "Ok"],
    ),
    "llama-factory-parts": (
        [
            {
                "messages": [
                    USER,
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "reasoning", "value": "I look."},
                            {"type": "tool_call", "value": '{"name": "look", "arguments": {"at": "sink"}}'},
                        ],
                    },
                ]
            }
        ],
        "chat conversations (OpenAI messages), 1 trajectory",
        ["<think>\nI look.\n</think>\n"],
        [LOOK + END],
        ["Find the mug."],
    ),
    "alpaca": (
        [{"instruction": "Add.", "input": "2 2", "output": "4"}],
        "instructions with answers (Alpaca), 1 trajectory",
        [],
        ["4" + END],
        ["Add.\n2 2"],
    ),
    "langchain": (
        [
            {
                "messages": [
                    {"type": "human", "content": "Find the mug.", "additional_kwargs": {}},
                    {
                        "lc": 1,
                        "type": "constructor",
                        "id": ["langchain", "schema", "messages", "AIMessage"],
                        "kwargs": {
                            "content": "I look.",
                            "tool_calls": [{"name": "look", "args": {"at": "sink"}, "id": "c", "type": "tool_call"}],
                        },
                    },
                    {"type": "tool", "data": {"content": "a mug", "tool_call_id": "c"}},
                ]
            }
        ],
        "LangChain or LangGraph states, 1 trajectory",
        ["I look."],
        [LOOK + END],
        ["Find the mug.", "a mug"],
    ),
    "langchain-executor": (
        [
            {
                "input": "Find it.",
                "output": "Sink.",
                "intermediate_steps": [
                    [
                        {"tool": "look", "tool_input": "sink", "log": "Thought: I look.\nAction: look\nAction Input: sink"},
                        "a mug",
                    ]
                ],
            }
        ],
        "runs of LangChain's AgentExecutor, 1 trajectory",
        ["Thought: I look.\n"],
        ["Action: look\n", "Action Input: sink" + END, "Final Answer: Sink." + END],
        ["Find it.", "Observation: a mug"],
    ),
    "swe-agent": (
        [
            {
                "environment": "swe_main",
                "trajectory": [],
                "history": [
                    {
                        "role": "assistant",
                        "content": "Demo.\n```\ncat\n```",
                        "thought": "Demo.",
                        "action": "cat",
                        "is_demo": True,
                    },
                    {"role": "user", "content": "Fix it."},
                    {"role": "assistant", "content": "I look.\n```\nls\n```", "thought": "I look.\n", "action": "ls\n"},
                ],
            }
        ],
        "SWE-agent trajectories, 1 trajectory",
        ["I look.\n"],
        ["```\nls\n```" + END],
        ["Demo.", "Fix it."],
    ),
    "mini-swe-agent": (
        [
            {
                "info": {"exit_status": "Submitted", "submission": "x"},
                "trajectory_format": "mini-swe-agent-1",
                "messages": [
                    USER,
                    {"role": "assistant", "content": "THOUGHT: I look.\n\n```bash\nls\n```"},
                    {"role": "user", "content": "a mug"},
                    {"role": "exit", "content": "x"},
                ],
            }
        ],
        "mini-swe-agent trajectories, 1 trajectory",
        ["THOUGHT: I look.\n\n"],
        ["```bash\nls\n```" + END],
        ["a mug"],
    ),
    "openhands": (
        [
            {
                "instance_id": "i1",
                "history": [
                    {"id": 0, "source": "agent", "action": "system", "args": {"content": "Be brief.", "tools": None}},
                    {"id": 1, "source": "user", "action": "message", "args": {"content": "Find the mug."}},
                    {
                        "id": 2,
                        "source": "agent",
                        "action": "run",
                        "args": {"command": "ls", "thought": "I look.", "blocking": False},
                    },
                    {"id": 3, "source": "agent", "observation": "run", "content": "a mug", "extras": {}},
                    {"id": 4, "source": "environment", "observation": "agent_state_changed", "content": ""},
                    {"id": 5, "source": "agent", "action": "message", "args": {"content": "In the sink."}},
                ],
            }
        ],
        "OpenHands evaluation outputs, 1 trajectory",
        ["I look."],
        [call("run", command="ls") + END, "In the sink." + END],
        ["Be brief.", "Find the mug.", "a mug"],
    ),
    "openhands-sdk": (
        [
            {
                "kind": "SystemPromptEvent",
                "source": "agent",
                "timestamp": "t",
                "system_prompt": {"type": "text", "text": "Be brief."},
                "tools": [],
            },
            {
                "kind": "MessageEvent",
                "source": "user",
                "timestamp": "t",
                "llm_message": {"role": "user", "content": [{"type": "text", "text": "Go."}]},
            },
            {
                "kind": "ActionEvent",
                "source": "agent",
                "timestamp": "t",
                "thought": [{"type": "text", "text": "I look."}],
                "tool_call": {"id": "c", "name": "look", "arguments": '{"at": "sink"}'},
                "tool_call_id": "c",
                "llm_response_id": "r",
            },
            {
                "kind": "ObservationEvent",
                "source": "environment",
                "timestamp": "t",
                "tool_call_id": "c",
                "observation": {"content": [{"type": "text", "text": "a mug"}]},
            },
        ],
        "OpenHands events of one session, 1 trajectory",
        ["I look."],
        [LOOK + END],
        ["Be brief.", "Go.", "a mug"],
    ),
    "smolagents": (
        [
            {"task": "Find the mug.", "task_images": None},
            {
                "step_number": 1,
                "timing": {},
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "python_interpreter", "arguments": "f()"}}
                ],
                "model_output": "Thought: I look.\n<code>\nf()\n</code>",
                "code_action": "f()",
                "observations": "a mug",
            },
        ],
        "steps of one smolagents run, 1 trajectory",
        ["Thought: I look.\n"],
        ["<code>\nf()\n</code>" + END],
        ["Find the mug.", "a mug"],
    ),
    "atif": (
        [
            {
                "schema_version": "ATIF-v1.4",
                "session_id": "s1",
                "agent": {"name": "a", "version": "1"},
                "steps": [
                    {"step_id": 1, "source": "user", "message": "Find the mug."},
                    {
                        "step_id": 2,
                        "source": "agent",
                        "message": "",
                        "reasoning_content": "I look.",
                        "tool_calls": [{"tool_call_id": "c", "function_name": "look", "arguments": {"at": "sink"}}],
                        "observation": {"results": [{"source_call_id": "c", "content": "a mug"}]},
                    },
                ],
            }
        ],
        "ATIF trajectories, 1 trajectory",
        ["<think>\nI look.\n</think>\n"],
        [LOOK + END],
        ["Find the mug.", "a mug"],
    ),
    "tau-bench": (
        [
            {
                "task_id": 3,
                "reward": 1.0,
                "info": {},
                "trial": 1,
                "traj": [USER, {"role": "assistant", "content": "Sink.", "tool_calls": None, "function_call": None}],
            }
        ],
        "tau-bench trajectories, 1 trajectory",
        [],
        ["Sink." + END],
        ["Find the mug."],
    ),
    "tau2-bench": (
        [
            {
                "simulations": [
                    {
                        "id": "a",
                        "reward_info": {"reward": 0.0},
                        "messages": [
                            {"role": "user", "content": "Hi", "turn_idx": 0},
                            {
                                "role": "user",
                                "content": None,
                                "tool_calls": [{"id": "u", "name": "phone", "arguments": {}, "requestor": "user"}],
                            },
                            {"role": "tool", "id": "u", "content": "ring", "requestor": "user"},
                            {
                                "role": "assistant",
                                "content": None,
                                "tool_calls": [{"id": "c", "name": "look", "arguments": {"at": "sink"}}],
                            },
                        ],
                    }
                ]
            }
        ],
        "tau2-bench simulations, 1 trajectory",
        [],
        [LOOK + END],
        ["Hi"],
    ),
    "trl-messages": (
        [
            {
                "prompt": [USER, {"role": "assistant", "content": "Where?"}, USER],
                "completion": [{"role": "assistant", "content": "Sink."}],
            }
        ],
        "prompts with completions, 1 trajectory",
        [],
        ["Sink." + END],
        ["Where?"],
    ),
    "trl-text": (
        [{"prompt": "Thought: write so.\nAction: go\n\nQ: 2+2?\n", "completion": "Thought: easy.\nAction: 4"}],
        "prompts with completions, 1 trajectory",
        ["Thought: easy.\n"],
        ["Action: 4"],
        ["Thought: write so.\nAction: go"],
    ),
    "rendered": (
        [{"text": "<|im_start|>user\nGo.<|im_end|>\n<|im_start|>assistant\n<think>a</think>b<|im_end|>\n"}],
        "sad trajectories, 1 trajectory",
        ["<think>a</think>"],
        ["b" + END],
        ["Go."],
    ),
}


def labelled(trajectory: sad.Trajectory, tokenizer) -> tuple[str, list[str], list[str]]:
    """Returns the text, the reasoning and the actions of a trajectory."""
    found = trajectory.segmented(tokenizer=tokenizer)
    parts = {kind: [found.text[s:e] for s, e, k in found.spans if k == kind] for kind in (sad.Span.REASON, sad.Span.ACT)}
    return found.text, parts[sad.Span.REASON], parts[sad.Span.ACT]


@pytest.mark.parametrize("name", SOURCES)
def test_source(name, tmp_path, make_tokenizer):
    records, said, reasons, acts, context = SOURCES[name]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    lines: list[str] = []
    (trajectory,) = sad.read_trajectories(path, say=lines.append)
    assert lines == [said] and trajectory.id
    text, found_reasons, found_acts = labelled(trajectory, make_tokenizer(chat_template=TEMPLATE))
    assert (found_reasons, found_acts) == (reasons, acts)
    for part in context:
        assert part in text and not any(part in span for span in found_reasons + found_acts)
    assert sad.read_trajectories(path, recognize(records[0]).name) == [trajectory]  # named, not recognized


def test_shapes_of_files(tmp_path):
    """JSON Lines, an array, indented, objects after each other, gzip, a folder, rows, a lone conversation."""
    record = {"id": "a", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]}
    two = [record, {**record, "id": "b"}]
    (tmp_path / "sub").mkdir()
    (tmp_path / "1.jsonl").write_text("\n\n".join(map(json.dumps, two)), encoding="utf-8")
    (tmp_path / "2.json").write_text(json.dumps(two), encoding="utf-8")
    (tmp_path / "3.json").write_text(json.dumps(two, indent=1), encoding="utf-8-sig")
    (tmp_path / "4.traj").write_text(json.dumps(record, indent=1) + "\n" + json.dumps(two[1], indent=1), encoding="utf-8")
    (tmp_path / "sub/5.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, two)).encode()))
    (tmp_path / "notes.txt").write_text("no trajectories", encoding="utf-8")
    for file in [*tmp_path.glob("*.[jt]*[ln]"), *tmp_path.glob("sub/*")]:
        assert [t.id for t in sad.read_trajectories(file)] == ["a", "b"], file
    assert len(sad.read_trajectories(tmp_path)) == 10 and len(sad.read_trajectories(tmp_path, limit=3)) == 3
    assert [t.id for t in sad.read_trajectories(two)] == ["a", "b"]
    (tmp_path / "lone.json").write_text(json.dumps(record["conversations"], indent=1), encoding="utf-8")
    (lone,) = sad.read_trajectories(tmp_path / "lone.json")
    assert len(lone.messages) == 2 and lone.id == "lone.json"


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    from pyarrow import Table

    record = {"id": "a", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r", "name": None}]}
    parquet.write_table(Table.from_pylist([record, {**record, "id": "b"}]), tmp_path / "a.parquet")
    assert [t.id for t in sad.read_trajectories(tmp_path)] == ["a", "b"]
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(sad.InputError, match=r"a\.parquet: expected a parquet file"):
        sad.read_trajectories(tmp_path)


def test_parquet_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(sad.InputError, match="the library that reads parquet, got no library `pyarrow`"):
        sad.read_trajectories(tmp_path / "a.parquet")


def test_a_source_of_ones_own(monkeypatch):
    monkeypatch.setattr(base, "_SOURCES", dict(base._SOURCES))
    mine = Source("mine", "my logs", lambda record: "said" in record, lambda record: sad.Trajectory(text=record["said"]))
    sad.register_source(mine, replace=True)
    (trajectory,) = sad.read_trajectories([{"said": "Action: go"}])
    assert (trajectory.text, trajectory.id) == ("Action: go", "row:1")
    with pytest.raises(sad.InputError, match=r"source\.name: expected a name not yet taken"):
        sad.register_source(mine)
    with pytest.raises(sad.InputError, match=r"source: expected one of auto, .*mine.*, got 'none'"):
        sad.read_trajectories([], "none")


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "narrator", "content": "x"}, r"messages\[1\]\.role: expected a role"),
        (
            {"role": "assistant", "content": [{"type": "image_url", "image_url": {}}]},
            r"content\[0\]: expected a part of type",
        ),
        ({"role": "assistant", "content": 5}, r"messages\[1\]\.content: expected a string"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"function": {}}]},
            r"tool_calls\[0\]: expected a call with a name",
        ),
        ({"role": "assistant", "content": "x\ud800"}, "expected valid Unicode"),
        (
            {"role": "assistant", "content": "x", "weight": "much"},
            r"messages\[1\]\.weight: expected true, false or a number",
        ),
        ({"role": "assistant", "content": "x", "loss_mask": [1, 0]}, "expected one value for the message"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(message, error, make_tokenizer):
    with pytest.raises(sad.InputError, match=error):
        segment([USER, message], "chat", tokenizer=make_tokenizer(chat_template=TEMPLATE))


def test_a_message_that_the_template_does_not_write_is_named(make_tokenizer):
    tokenizer = make_tokenizer(chat_template=TEMPLATE.replace("{{ m.content }}", "{{ m.content if m.role != 'tool' }}"))
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [OPENAI_CALL]},
        {"role": "tool", "content": "a mug"},
    ]
    with pytest.raises(
        sad.InputError, match=r"messages\[2\]: expected its text .* 'a mug'.* no place for a message of role 'tool'"
    ):
        segment(messages, "chat", tokenizer=tokenizer)
    with_tools = segment(messages[:2], "chat", tokenizer=tokenizer, tools='[{"name": "look"}, {"name": "smell"}]')
    assert '"smell"' in with_tools.text and not with_tools.unparsed
    assert "no assistant message" in segment([USER], "chat", tokenizer=tokenizer).unparsed[0].reason


def test_string_arguments_where_a_template_wants_them(make_tokenizer):
    wants = TEMPLATE.replace("{{ call.function | tojson }}", "{{ call.function.name + call.function.arguments }}")
    message = {"role": "assistant", "content": "", "tool_calls": [OPENAI_CALL]}
    found = segment([USER, message], "chat", tokenizer=make_tokenizer(chat_template=wants))
    assert 'look{"at": "sink"}' in found.text


KEYS = st.sampled_from(["type", "text", "role", "name", "content", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
_RECORDS = [(name, number) for name, case in SOURCES.items() for number in range(len(case[0]))]


def _places(value, path=()):
    """Yields the path of every value inside of a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from _places(item, (*path, key))


def _replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(value[path[0]], path[1:], new)
    return copy


@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_any_json_in_any_field_is_read_or_refused(data, make_tokenizer):
    """No traceback: the only exception is InputError, whose text can be printed."""
    name, number = data.draw(st.sampled_from(_RECORDS))
    records = list(SOURCES[name][0])
    path = data.draw(st.sampled_from(list(_places(records[number]))))
    records[number] = _replaced(records[number], path, data.draw(JSON))
    try:
        for trajectory in sad.read_trajectories(records):
            sad.encode_all([trajectory], make_tokenizer(chat_template=TEMPLATE)).summary()
    except sad.InputError as error:
        str(error).encode("utf-8", "backslashreplace")
