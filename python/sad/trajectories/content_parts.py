"""Reads content that is a list of typed parts: texts, thoughts, tool calls and tool results of many APIs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from sad.errors import InputError
from sad.trajectories.json_values import first_of, parsed, to_json
from sad.trajectories.messages import Call, shown

_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_THOUGHT_PARTS = ("thinking", "reasoning", "think", "thought", "redacted_thinking", "reasoning_content")
_SERVER_RESULT = "_tool_result"  # the end of the type of what a tool of the API returned, such as web_search_tool_result
_CALL_PARTS = ("server_tool_use", "mcp_tool_use", "tool_use", "tool_call", "tool-call", "function_call")
RESULT_PARTS = ("tool_result", "tool-result", "function_call_output")
CONTENT_REMEDY = "Convert it to text, tool calls or tool results, or remove the message."


class ContentParts(NamedTuple):
    """What a list of typed parts says: texts, thoughts, calls, and results as (content, id of the call)."""

    texts: list[str]
    thoughts: list[str]
    calls: list[Call]
    results: list[tuple[str, str]]


def make_call(value: Any, where: str) -> Call:
    """Returns the call that an object of an API describes.

    Raises:
        InputError: The object has no name of a tool.
    """
    remedy = 'Write {"type": "function", "function": {"name": ..., "arguments": ...}}.'
    inner = value
    for key in ("function", "function_call", "custom"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            inner = value[key]
    name = first_of(inner, "name", "toolName", "tool_name", "function_name", "action") if isinstance(inner, dict) else None
    if isinstance(inner, dict) and name is None and isinstance(inner.get("function"), str):
        name = inner["function"]
    if not isinstance(name, str) or not name:
        raise InputError(where, "a call with a name", shown(value), remedy)
    arguments = first_of(inner, "arguments", "args", "input", "parameters", "params", "kwargs", "action_input")
    if arguments is None or arguments == "":
        arguments = {}
    if isinstance(arguments, str) and isinstance(parsed(arguments), dict):
        arguments = parsed(arguments)
    found = first_of(value, "id", "call_id", "tool_call_id", "toolCallId", "tool_use_id")
    return Call(name, arguments, found if isinstance(found, str) else "")


def calls_in_text(text: Any, where: str) -> list[Call] | None:
    """Returns the calls in the JSON text of a message whose role says that it is a call; None if it is no such JSON."""
    value = parsed(text)
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, dict) for item in values):
        return None
    return [make_call(item, where) for item in values]


def _part_text(block: dict[str, Any], where: str, *keys: str) -> str:
    value = first_of(block, *keys, "value")
    if isinstance(value, list):
        return read_text(value, where)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(where, f"a {block.get('type')} part with text", shown(block), CONTENT_REMEDY)
    return value


def read_text(content: Any, where: str) -> str:
    """Returns content as one string: joins text parts, and writes scalars and objects as JSON.

    Raises:
        InputError: A part is not text.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        return to_json(content, where)
    if content and not all(isinstance(part, str) or (isinstance(part, dict) and "type" in part) for part in content):
        return to_json(content, where)
    blocks = read_parts(content, where)
    if blocks.thoughts or blocks.calls or blocks.results:
        raise InputError(where, "text parts", shown(content), CONTENT_REMEDY)
    return "".join(blocks.texts)


def to_text(content: Any, where: str) -> str:
    """Returns what a tool of the API returned: text parts joined, any other value as JSON."""
    plain = isinstance(content, list) and all(isinstance(x, dict) and x.get("type") in _TEXT_PARTS for x in content)
    return read_text(content, where) if plain or isinstance(content, str) else to_json(content, where)


def is_result(part: Any) -> bool:
    """Returns whether a part of a content is the result of a tool."""
    kind = part.get("type") if isinstance(part, dict) else None
    return kind in RESULT_PARTS or (isinstance(kind, str) and kind.endswith(_SERVER_RESULT))


def read_parts(content: Iterable[Any], where: str) -> ContentParts:
    """Reads a list of typed parts.

    Raises:
        InputError: The type of a part is unknown, such as an image.
    """
    found = ContentParts([], [], [], [])
    for number, block in enumerate(content):
        at = f"{where}.content[{number}]"
        if isinstance(block, str):
            found.texts.append(block)
            continue
        kind = block.get("type") if isinstance(block, dict) else None
        if isinstance(block, dict) and kind is None and isinstance(block.get("text"), str):  # Gemini's parts
            kind = "text"
        if not isinstance(kind, str):
            raise InputError(at, "an object with a type", shown(block), CONTENT_REMEDY)
        if kind in _TEXT_PARTS:
            found.texts.append(_part_text(block, at, _TEXT_PARTS[kind]))
        elif kind in _THOUGHT_PARTS:
            keys = ("thinking", "reasoning", "text", "content", "reasoning_content", "summary")
            found.thoughts.append(_part_text(block, at, *keys))
        elif kind in _CALL_PARTS:
            calls = calls_in_text(block["value"], at) if "value" in block else [make_call(block, at)]
            if calls is None:
                raise InputError(at, "a call as JSON", shown(block), CONTENT_REMEDY)
            found.calls.extend(calls)
        elif is_result(block):
            result = first_of(block, "content", "output", "result", "value")
            if isinstance(result, dict) and set(result) == {"type", "value"}:  # the AI SDK wraps the output
                result = result["value"]
            of = first_of(block, "tool_use_id", "tool_call_id", "toolCallId", "call_id")
            text = read_text(result, at) if kind in RESULT_PARTS else to_text(result, at)
            found.results.append((text, of if isinstance(of, str) else ""))
        else:
            expected = "a part of type text, thinking, tool_use or tool_result"
            raise InputError(at, expected, f"type {kind!r}", CONTENT_REMEDY)
    return found
