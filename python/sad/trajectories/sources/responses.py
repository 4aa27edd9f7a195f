"""OpenAI's Responses API: requests with `input` and `output` items, lists of items, and Codex sessions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sad.errors import InputError
from sad.trajectories.json_values import absent, first_of
from sad.trajectories.messages import shown
from sad.trajectories.sources.base import Source, conversation, grouped_in_file, is_dict_list, need, with_system
from sad.trajectories.trajectory import Trajectory

_CALLS = ("function_call", "custom_tool_call", "local_shell_call", "mcp_call")
_OUTPUTS = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")
_ITEMS = ("message", "reasoning", *_CALLS, *_OUTPUTS)


def messages_of_items(items: Iterable[Any]) -> list[dict[str, Any]]:
    """Returns chat messages of the items; reasoning, text and calls that follow each other are one message.

    Raises:
        InputError: An item has an unknown type.
    """
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(items):
        where = f"item {number}"
        need(item, dict, where, "an object")
        kind = item.get("type") or ("message" if isinstance(item.get("role"), str) else None)
        if kind == "message":
            role = need(item.get("role"), str, f"{where}.role", "a role")
            if role != "assistant":
                messages.append({"role": role, "content": item.get("content")})
                continue
            turn = _open_turn(messages, lambda last: not last.get("tool_calls") and absent(last.get("content")))
            turn["content"] = item.get("content")
        elif kind == "reasoning":
            turn = _open_turn(messages, lambda last: not last.get("tool_calls") and absent(last.get("content")))
            thoughts = first_of(item, "content", "summary") if not absent(item.get("content")) else item.get("summary")
            turn["reasoning_details"] = [
                *turn.get("reasoning_details", []),
                *(thoughts if isinstance(thoughts, list) else []),
            ]
        elif kind in _CALLS:
            turn = _open_turn(messages, lambda last: True)
            call = {key: value for key, value in item.items() if key in ("name", "arguments", "input", "call_id")}
            if kind == "local_shell_call":
                call |= {"name": "local_shell", "arguments": first_of(item, "action") or {}}
            turn.setdefault("tool_calls", []).append(call)
            if kind == "mcp_call" and isinstance(item.get("output"), str):
                messages.append({"role": "tool", "content": item["output"]})
        elif kind in _OUTPUTS:
            messages.append({"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")})
        else:
            expected = f"an item of type {', '.join(_ITEMS)}"
            raise InputError(where, expected, shown(item), "Remove the item, or convert it to a function call.")
    return messages


def _open_turn(messages: list[dict[str, Any]], fits: Any) -> dict[str, Any]:
    """Returns the last message if it is an assistant's and the next item fits into it; otherwise a new one."""
    if not messages or messages[-1]["role"] != "assistant" or not fits(messages[-1]):
        messages.append({"role": "assistant", "content": None})
    return messages[-1]


def _is_item(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") in _ITEMS and ("role" in value or value["type"] != "message")


def _is_chat(value: Any) -> bool:
    """Returns whether a value is a chat message without a type."""
    return isinstance(value, dict) and "type" not in value and isinstance(value.get("role"), str)


def _sides(record: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    request = record.get("request") if isinstance(record.get("request"), dict) else record
    response = record.get("response") if isinstance(record.get("response"), dict) else record
    return request, response


def _is_exchange(record: Any) -> bool:
    if not isinstance(record, dict):
        return False
    request, response = _sides(record)
    output, given = response.get("output"), request.get("input")
    items = is_dict_list(output) and any(map(_is_item, output)) and not any(map(_is_chat, output))
    return items or (is_dict_list(given) and any(map(_is_item, given)))


def _read_exchange(record: dict[str, Any]) -> Trajectory:
    request, response = _sides(record)
    given, output = request.get("input"), response.get("output")
    asked = [{"role": "user", "content": given}] if isinstance(given, str) else messages_of_items(given or [])
    if not absent(output):  # what stands in the input, the model read
        asked = [{**message, "train": False} if message["role"] == "assistant" else message for message in asked]
    messages = with_system([*asked, *messages_of_items(output or [])], first_of(request, "instructions"))
    used = ("request", "response", "input", "output", "instructions", "tools")
    return conversation(messages, record, *used, tools=first_of(request, "tools"))


def _read_items(items: list[Any]) -> Trajectory:
    return conversation(messages_of_items(items), {})


_CODEX = ("session_meta", "response_item", "event_msg", "turn_context", "compacted")


def _is_codex(record: Any) -> bool:
    return isinstance(record, dict) and record.get("type") in _CODEX and isinstance(record.get("payload"), dict)


def _read_codex(records: list[dict[str, Any]]) -> list[Trajectory]:
    """Returns the trajectories of a session: a new one begins where a summary replaces the items before it."""
    meta = next((record["payload"] for record in records if record["type"] == "session_meta"), {})
    parts: list[list[dict[str, Any]]] = [[]]
    for record in records:
        item = record["payload"]
        if record["type"] == "compacted" and isinstance(item.get("message"), str):
            parts.append([{"type": "message", "role": "user", "content": item["message"]}])
        elif record["type"] == "response_item" and _says_something(item):
            parts[-1].append(item)
    found = []
    for number, items in enumerate(parts):
        messages = messages_of_items(items)
        if number and not any(message["role"] == "assistant" for message in messages):
            continue
        name = f"{meta.get('id')}#{number + 1}" if number else meta.get("id")
        fields = {"id": name} if isinstance(meta.get("id"), str) else {}
        found.append(conversation(with_system(messages, meta.get("instructions")), {}, **fields))
    return found


def _says_something(item: dict[str, Any]) -> bool:
    """Returns whether an item of a session is a message, or a call, also of an unknown kind, or a result."""
    kind = item.get("type")
    return kind in _ITEMS or "role" in item or (isinstance(kind, str) and kind.endswith(("_call", "_output")))


SOURCES = (
    Source("responses-items", "items of one response (OpenAI Responses)", _is_item, _read_items, grouped_in_file),
    Source("responses", "requests and responses (OpenAI Responses)", _is_exchange, _read_exchange),
    Source("codex", "Codex sessions", _is_codex, _read_codex, grouped_in_file),
)
