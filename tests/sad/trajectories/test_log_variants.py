"""Variants of logs as programs write them: right labels, or one refusal with the reason."""

from __future__ import annotations

import json

import pytest

import sad
from sad.trajectories.segment import segment

from .chat_templates import tokenizer_of
from .test_sources import END, LOOK, TEMPLATE, USER, labelled

SESSION = {"sessionId": "s", "version": "1"}
DONE = {"role": "assistant", "content": "Done."}


def claude(kind: str, content, **more) -> dict:
    message = {"role": kind, "content": content, **more.pop("message", {})}
    return {**SESSION, "type": kind, "uuid": str(content), "message": message, **more}


def langchain(kind: str, **fields) -> dict:
    return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", kind], "kwargs": fields}


def codex(kind: str, **payload) -> dict:
    return {"timestamp": "t", "type": kind, "payload": payload}


def text_item(role: str, text: str) -> dict:
    return codex("response_item", type="message", role=role, content=[{"type": "input_text", "text": text}])


def read(tmp_path, *records) -> list[sad.Trajectory]:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return sad.read_trajectories(path)


def test_a_claude_code_session(tmp_path):
    """Errors of the program are no turns, a summary begins a new context, and a sidechain has its own id."""
    found = read(
        tmp_path,
        claude("user", "fix it"),
        claude("assistant", "Looking."),
        claude("user", "sub task", isSidechain=True),
        claude("assistant", "Sub done.", isSidechain=True),
        {**SESSION, "type": "system", "subtype": "compact_boundary", "content": "Conversation compacted"},
        claude("user", "This session is being continued.", isCompactSummary=True),
        claude("assistant", "API Error: 500", isApiErrorMessage=True),
        claude("assistant", "No response requested.", message={"model": "<synthetic>"}),
        claude("assistant", "All done."),
    )
    contents = {trajectory.id: [message["content"] for message in trajectory.messages] for trajectory in found}
    assert contents == {
        "s": ["fix it", "Looking."],
        "s#2": ["This session is being continued.", "All done."],
        "s/sidechain": ["sub task", "Sub done."],
    }


def test_a_codex_session_that_was_compacted(tmp_path):
    found = read(
        tmp_path,
        codex("session_meta", id="s", instructions="Be brief."),
        text_item("user", "ask"),
        text_item("assistant", "First."),
        codex("compacted", message="They asked; I answered."),
        text_item("user", "more"),
        text_item("assistant", "Second."),
    )
    assert [t.id for t in found] == ["s", "s#2"]
    assert [m["content"] for m in found[1].messages][:2] == ["Be brief.", "They asked; I answered."]


@pytest.mark.parametrize("wrap", [lambda item: codex("response_item", **item), None])
def test_a_call_of_an_unknown_kind_is_not_dropped(tmp_path, wrap):
    search = {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "q"}}
    answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]}
    records = [wrap(search), wrap(answer)] if wrap else [{"input": "ask", "output": [search, answer]}]
    with pytest.raises(sad.InputError, match=r"item 0: expected an item of type .*web_search_call"):
        read(tmp_path, *records)


def test_a_run_of_a_model_in_langsmith(tmp_path, make_tokenizer):
    [trajectory] = read(
        tmp_path,
        {
            "inputs": {"messages": [[langchain("HumanMessage", content="ask"), langchain("AIMessage", content="Old.")]]},
            "outputs": {"generations": [[{"text": "New.", "message": langchain("AIMessage", content="New.")}]]},
        },
    )
    assert labelled(trajectory, make_tokenizer(chat_template=TEMPLATE))[1:] == ([], ["New." + END])


def test_invalid_calls_of_langchain_are_the_models(tmp_path, make_tokenizer):
    calls = [{"name": "look", "args": "{bad", "id": "c", "type": "invalid_tool_call"}]
    ai = {"type": "ai", "content": "", "tool_calls": [], "invalid_tool_calls": calls}
    [trajectory] = read(tmp_path, {"messages": [{"type": "human", "content": "ask"}, ai]})
    [act] = labelled(trajectory, make_tokenizer(chat_template=TEMPLATE))[2]
    assert "look" in act and "{bad" in act


@pytest.mark.parametrize(
    ("record", "key"),
    [
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "kto_tag": False}, "kto_tag"),
        ({"instruction": "a", "output": "b", "kto_tag": False}, "kto_tag"),
        ({"messages": [USER, DONE], "label": False}, "label"),
        ({"prompt": "a", "completion": "b", "label": False}, "label"),
    ],
)
def test_a_bad_example_of_kto_is_refused(tmp_path, record, key):
    with pytest.raises(sad.InputError, match=f"line 1, {key}: expected true, a desired answer, got false"):
        read(tmp_path, record)
    assert len(read(tmp_path, {**record, key: True})) == 1


def test_act_of_agentinstruct(make_tokenizer):
    content = "Think: I list the files.\n\nAct: bash\n\n```bash\nls\n```"
    trajectory = sad.Trajectory(messages=[USER, {"role": "assistant", "content": content}])
    _, reasons, acts = labelled(trajectory, make_tokenizer(chat_template=TEMPLATE))
    assert reasons == ["Think: I list the files.\n\n"] and acts == ["Act: bash\n\n```bash\nls\n```" + END]


def test_keys_of_other_trainers(make_tokenizer):
    """`loss_weight` 0 excludes a message; LiteLLM keeps thoughts of a provider apart."""
    messages = [
        USER,
        {"role": "assistant", "content": "No.", "loss_weight": 0.0},
        USER,
        {"role": "assistant", "content": "Yes.", "provider_specific_fields": {"reasoning_content": "Hm."}},
    ]
    found = labelled(sad.Trajectory(messages=messages), make_tokenizer(chat_template=TEMPLATE))
    assert found[1:] == (["<think>\nHm.\n</think>\n"], ["Yes." + END])


RENDERED = {
    "kimi": (
        "<|im_user|>user<|im_middle|>ask<|im_end|><|im_assistant|>assistant<|im_middle|><think>hm</think>"
        "<|tool_calls_section_begin|>look<|tool_calls_section_end|><|im_end|><|im_system|>tool<|im_middle|>seen<|im_end|>",
        ["<think>hm</think>"],
        ["<|tool_calls_section_begin|>look<|tool_calls_section_end|><|im_end|>"],
    ),
    "cohere": (
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>ask<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>ok<|END_OF_TURN_TOKEN|>",
        [],
        ["ok<|END_OF_TURN_TOKEN|>"],
    ),
    "gemma4": (
        "<|turn>user\nask<turn|>\n<|turn>model\nI look.<|tool_call>call:look{}<tool_call|><|tool_response>"
        "response:look{}<tool_response|><|turn>model\nok<turn|>\n",
        ["I look."],
        ["<|tool_call>call:look{}<tool_call|><|tool_response>", "ok<turn|>"],
    ),
}


@pytest.mark.parametrize("name", RENDERED)
def test_rendered_text(name):
    text, reasons, acts = RENDERED[name]
    found = segment(text, "chat", tokenizer=tokenizer_of("qwen", text))
    parts = {kind: [text[s:e] for s, e, k in found.spans if k == kind] for kind in (sad.Span.REASON, sad.Span.ACT)}
    assert (parts[sad.Span.REASON], parts[sad.Span.ACT]) == (reasons, acts)
    assert sad.Trajectory(text=text).segmented().spans == found.spans  # recognized by its marks


RECORD = {"messages": [USER, DONE]}


@pytest.mark.parametrize(
    "content",
    [
        ("\ufeff" + json.dumps(RECORD) + "\r\n").encode("utf-16-le"),
        ("\ufeff" + json.dumps([RECORD], indent=1)).encode("utf-16-be"),
        json.dumps({"version": 1, "data": [RECORD]}).encode(),
        json.dumps({"trajectories": [RECORD]}, indent=1).encode(),
        json.dumps({"features": [], "rows": [{"row_idx": 0, "row": RECORD}]}).encode(),
        json.dumps({"messages": json.dumps(RECORD["messages"])}).encode(),
        json.dumps({"conversations": json.dumps([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}])}).encode(),
    ],
)
def test_forms_of_files(tmp_path, content):
    (tmp_path / "log.json").write_bytes(content)
    [trajectory] = sad.read_trajectories(tmp_path / "log.json")
    assert len(trajectory.messages) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"messages": []},]', r"log\.json, line 1: expected valid JSON, got a comma before the closing '\]'"),
        (b'[\n {"messages": [],\n  "id": 1,\n }\n]', r"log\.json, line 4: .*a comma before the closing '}'"),
        (b'[\n {"messages": []}\n', r"log\.json, line \d: expected one JSON object per line"),
        (b"\xff\xfe\x00\xd8", r"log\.json: expected a readable .*UTF-16"),
    ],
)
def test_broken_files_name_the_place(tmp_path, content, message):
    (tmp_path / "log.json").write_bytes(content)
    with pytest.raises(sad.InputError, match=message):
        sad.read_trajectories(tmp_path / "log.json")


def test_the_call_of_a_log_is_that_of_the_text(make_tokenizer):
    """A guard of this file: the helper labels a call as an action."""
    calls = [{"function": {"name": "look", "arguments": '{"at": "sink"}'}}]
    trajectory = sad.Trajectory(messages=[USER, {"role": "assistant", "content": None, "tool_calls": calls}])
    assert labelled(trajectory, make_tokenizer(chat_template=TEMPLATE))[2] == [LOOK + END]
