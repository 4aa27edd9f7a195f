"""Brings the messages of every source to one form, before a chat template sees them.

The keys come from the APIs and the files of many programs: OpenAI, Anthropic, ShareGPT, ms-swift, LangChain and others.
Null values and empty lists count as absent. Whatever has no meaning here raises an error that names the message.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sad.errors import InputError
from sad.trajectories.messages import Call, Message, check_messages, shown
from sad.trajectories.spans import Span, SpanKind

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "user_proxy"), "user"),
    **dict.fromkeys(("assistant", "ai", "gpt", "chatgpt", "model", "bot", "agent", "function_call"), "assistant"),
    **dict.fromkeys(("tool_call", "tool_calls", "tool-call", "aimessagechunk"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "tool-response", "tool_result"), "tool"),
    **dict.fromkeys(("tool_results", "function_response", "function-response", "ipython", "environment", "env"), "tool"),
}
_CALLING_ROLES = ("function_call", "tool_call", "tool_calls", "tool-call")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought", "tool_plan")
_TRAINED_KEYS = (
    "loss",
    "weight",
    "loss_weight",
    "train",
    "trainable",
    "training",
    "train_on_turn",
    "loss_mask",
    "step_loss_mask",
)
_UNTRAINED_KEYS = ("is_demo", "demo")
_READ_KEYS = frozenset(
    {"role", "content", "tool_calls", "function_call", "reasoning_details", "spans"}
    | {*REASONING_KEYS, *_TRAINED_KEYS, *_UNTRAINED_KEYS}
)
_TEXT_BLOCKS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_THOUGHT_BLOCKS = ("thinking", "reasoning", "think", "thought", "redacted_thinking", "reasoning_content")
_CALL_BLOCKS = ("tool_use", "tool_call", "tool-call", "function_call")
_RESULT_BLOCKS = ("tool_result", "tool-result", "function_call_output")
_CONTENT_REMEDY = "Convert it to text, tool calls or tool results, or remove the message."


class _Blocks(NamedTuple):
    """What a list of typed parts says: texts, thoughts, calls, and results as (content, id of the call)."""

    texts: list[str]
    thoughts: list[str]
    calls: list[Call]
    results: list[tuple[str, str]]


def absent(value: Any) -> bool:
    """Returns whether a value says nothing: null, or an empty list."""
    return value is None or (isinstance(value, (list, tuple)) and not value)


def first_of(record: dict[str, Any], *keys: str) -> Any:
    """Returns the value of the first key that is present and not null; None without one."""
    return next((record[key] for key in keys if record.get(key) is not None), None)


def parsed(text: Any) -> Any:
    """Returns the JSON value in a string; None for another string; any other value unchanged."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def to_json(value: Any, where: str) -> str:
    """Returns a value as JSON text."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(where, "a value that JSON can store", f"{shown(value)} ({error})", "Convert the value.") from None


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


def _block_text(block: dict[str, Any], where: str, *keys: str) -> str:
    value = first_of(block, *keys, "value")
    if isinstance(value, list):
        return read_text(value, where)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(where, f"a {block.get('type')} part with text", shown(block), _CONTENT_REMEDY)
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
    blocks = _read_blocks(content, where)
    if blocks.thoughts or blocks.calls or blocks.results:
        raise InputError(where, "text parts", shown(content), _CONTENT_REMEDY)
    return "".join(blocks.texts)


def _read_blocks(content: Iterable[Any], where: str) -> _Blocks:
    """Reads a list of typed parts.

    Raises:
        InputError: The type of a part is unknown, such as an image.
    """
    found = _Blocks([], [], [], [])
    for number, block in enumerate(content):
        at = f"{where}.content[{number}]"
        if isinstance(block, str):
            found.texts.append(block)
            continue
        kind = block.get("type") if isinstance(block, dict) else None
        if isinstance(block, dict) and kind is None and isinstance(block.get("text"), str):  # Gemini's parts
            kind = "text"
        if not isinstance(kind, str):
            raise InputError(at, "an object with a type", shown(block), _CONTENT_REMEDY)
        if kind in _TEXT_BLOCKS:
            found.texts.append(_block_text(block, at, _TEXT_BLOCKS[kind]))
        elif kind in _THOUGHT_BLOCKS:
            keys = ("thinking", "reasoning", "text", "content", "reasoning_content", "summary")
            found.thoughts.append(_block_text(block, at, *keys))
        elif kind in _CALL_BLOCKS:
            calls = calls_in_text(block["value"], at) if "value" in block else [make_call(block, at)]
            if calls is None:
                raise InputError(at, "a call as JSON", shown(block), _CONTENT_REMEDY)
            found.calls.extend(calls)
        elif kind in _RESULT_BLOCKS:
            result = first_of(block, "content", "output", "result", "value")
            if isinstance(result, dict) and set(result) == {"type", "value"}:  # the AI SDK wraps the output
                result = result["value"]
            of = first_of(block, "tool_use_id", "tool_call_id", "toolCallId", "call_id")
            found.results.append((read_text(result, at), of if isinstance(of, str) else ""))
        else:
            expected = "a part of type text, thinking, tool_use or tool_result"
            raise InputError(at, expected, f"type {kind!r}", _CONTENT_REMEDY)
    return found


def _reasoning(message: dict[str, Any], where: str) -> str:
    """Returns the thoughts that a message holds outside its content."""
    for key in REASONING_KEYS:
        value = message.get(key)
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, (list, dict)) and value:
            blocks = value if isinstance(value, list) else [value]
            texts = [_summary_text(item) for item in blocks]
            if any(texts):
                return "\n".join(filter(None, texts))
            raise InputError(f"{where}.{key}", "a string", shown(value), "Write the reasoning as one string.")
        if isinstance(value, (bool, int, float)) and value:
            raise InputError(f"{where}.{key}", "a string", shown(value), "Write the reasoning as one string.")
    provided = message.get("provider_specific_fields")  # LiteLLM
    if isinstance(provided, dict) and isinstance(provided.get("reasoning_content"), str):
        return provided["reasoning_content"]
    details = message.get("reasoning_details")
    if isinstance(details, list):
        return "\n".join(filter(None, map(_summary_text, details)))
    return ""


def _summary_text(item: Any) -> str:
    """Returns the text of one entry of a list of thoughts; "" if it is encrypted."""
    if isinstance(item, str):
        return item
    if not isinstance(item, dict):
        return ""
    value = first_of(item, "text", "thinking", "summary", "content")
    if isinstance(value, list):
        return "\n".join(filter(None, map(_summary_text, value)))
    return value if isinstance(value, str) else ""


def is_trained(record: dict[str, Any], where: str) -> bool:
    """Returns whether a message counts, by the keys with which data sets exclude one (`loss`, `weight`, `is_demo`, ...).

    Raises:
        InputError: A value is neither a boolean nor a number, or a list of token weights that are not all equal.
    """
    for key in _TRAINED_KEYS + _UNTRAINED_KEYS:
        value = record.get(key)
        if absent(value) or (isinstance(value, str) and not value):
            continue
        if isinstance(value, list):
            if any(not isinstance(item, (bool, int, float)) for item in value) or len({bool(item) for item in value}) > 1:
                remedy = "Write one value for the message, or give the spans."
                raise InputError(f"{where}.{key}", "one value for the message", shown(value), remedy)
            value = value[0]
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if isinstance(value, str):
            value = words.get(value.lower(), value)
        if not isinstance(value, (bool, int, float)) or math.isnan(value):
            raise InputError(f"{where}.{key}", "true, false or a number", shown(value), "Fix the value or remove the key.")
        if bool(value) is (key in _UNTRAINED_KEYS):
            return False
    return True


def _own_spans(value: Any, content: Any, where: str) -> list[Span] | None:
    """Returns the spans that a source states for the content of a message."""
    if absent(value):
        return None
    names = {kind.name.lower(): kind for kind in SpanKind}
    if isinstance(content, str) and isinstance(value, (list, tuple)):
        try:
            spans = sorted(Span(int(b), int(e), names[k] if isinstance(k, str) else SpanKind(k)) for b, e, k in value)
            ends = [0, *(span.end for span in spans)]
            if all(end <= s.start <= s.end <= len(content) for end, s in zip(ends, spans)):
                return spans
        except (KeyError, TypeError, ValueError, OverflowError):
            pass
    remedy = 'Write [[0, 12, "reason"], [12, 30, "act"]], character ranges of the content that do not overlap.'
    raise InputError(f"{where}.spans", "a list of [start, end, kind] in the content", shown(value), remedy)


def _check_unicode(message: Message) -> None:
    for name, text in (("content", message.content), ("reasoning", message.reasoning)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            where = f"{message.where}.{name}"
            raise InputError(where, "valid Unicode", str(error), "Remove the lone surrogate.") from None
    for call in message.calls:
        try:
            (call.name + call.id + to_json(call.arguments, f"{message.where}.tool_calls")).encode()
        except UnicodeEncodeError as error:
            where = f"{message.where}.tool_calls"
            raise InputError(where, "valid Unicode", str(error), "Remove the lone surrogate.") from None


def _calls(message: dict[str, Any], where: str) -> list[Call]:
    calls = message.get("tool_calls")
    calls = parsed(calls) if isinstance(calls, str) else calls
    if absent(calls) and message.get("function_call"):
        calls = [message["function_call"]]
    if absent(calls):
        return []
    remedy = 'Write [{"type": "function", "function": {"name": ..., "arguments": ...}}].'
    if not isinstance(calls, (list, tuple)):
        raise InputError(f"{where}.tool_calls", "a list of calls", shown(calls), remedy)
    return [make_call(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(calls)]


def _normalize(message: dict[str, Any], number: int) -> list[Message]:
    where = f"messages[{number}]"
    written = message["role"].strip().lower()
    if written not in ROLES:
        expected = "a role: system, developer, user, assistant or tool"
        raise InputError(f"{where}.role", expected, shown(message["role"]), "Rename the role of this message.")
    role, content = ROLES[written], message.get("content")
    trained = is_trained(message, where)
    keys = {key: value for key, value in message.items() if key not in _READ_KEYS and not absent(value)}
    base = Message(number, role, trained=trained, keys=keys)
    if isinstance(content, dict) and isinstance(content.get("type"), str):
        content = [content]
    if role == "tool":
        return _tool_messages(base, content, where)
    if not isinstance(content, (str, list, tuple, type(None))):
        raise InputError(f"{where}.content", "a string or a list of parts", shown(content), "Write the text as a string.")
    blocks = _read_blocks([content] if isinstance(content, str) else content or (), where)
    base.content = "".join(blocks.texts)
    base.spans = _own_spans(message.get("spans"), content, where)
    if role != "assistant":
        if blocks.thoughts or blocks.calls:
            raise InputError(
                f"{where}.content", f"no thoughts or calls in a {role} message", shown(content), _CONTENT_REMEDY
            )
        results = [Message(number, "tool", text, keys={"tool_call_id": of} if of else {}) for text, of in blocks.results]
        return [*results, base] if base.content.strip() or not results else results
    if blocks.results:
        raise InputError(f"{where}.content", "no tool results in an assistant message", shown(content), _CONTENT_REMEDY)
    base.calls = _calls(message, where)
    if written in _CALLING_ROLES and not base.calls:
        if (calls := calls_in_text(base.content, where)) is not None:
            base.calls, base.content = calls, ""
    known = {call.id for call in base.calls if call.id}  # LangChain states the calls twice
    base.calls += [call for call in blocks.calls if not base.calls or (call.id and call.id not in known)]
    base.reasoning = "\n".join(filter(None, [_reasoning(message, where), *blocks.thoughts]))
    return [base]


def _tool_messages(base: Message, content: Any, where: str) -> list[Message]:
    typed = isinstance(content, list) and content and all(isinstance(x, dict) and x.get("type") for x in content)
    if typed and all(block["type"] in _RESULT_BLOCKS for block in content):
        results = _read_blocks(content, where).results
        return [
            Message(base.number, "tool", text, trained=base.trained, keys={**base.keys, "tool_call_id": of})
            for text, of in results
        ]
    base.content = read_text(content, f"{where}.content")
    return [base]


def _attach_calls(messages: list[Message], originals: Sequence[dict[str, Any]]) -> list[Message]:
    """Moves calls that are messages of their own to the assistant message before them: text, then parallel calls."""
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else None
        calling = originals[message.number]["role"].strip().lower() in _CALLING_ROLES
        alone = calling and message.calls and not message.content and not message.reasoning
        if alone and last is not None and last.role == "assistant" and last.trained == message.trained:
            last.calls += message.calls
        else:
            merged.append(message)
    return merged


def normalize_messages(messages: Any) -> list[Message]:
    """Returns the messages in one form. One message can become several: Anthropic's tool results are messages of their own.

    Args:
        messages: A list of dicts with a role; `docs/logs.md` lists the keys that count.

    Raises:
        InputError: A message has an unknown role, an unknown part, a call without a name, or invalid Unicode.
    """
    checked = check_messages(messages)
    found = [item for number, message in enumerate(checked) for item in _normalize(message, number)]
    found = _attach_calls(found, checked)
    for message in found:
        _check_unicode(message)
    return found


def normalize_tools(tools: Any, where: str = "tools") -> list[Any] | None:
    """Returns tool descriptions as templates expect them: {"type": "function", "function": {...}}.

    Args:
        tools: The descriptions as a list or as JSON text; Anthropic's `input_schema` and bare functions are wrapped.
        where: The location for error messages.

    Raises:
        InputError: The tools are no list of objects.
    """
    value = parsed(tools) if isinstance(tools, str) and tools.strip() else tools
    remedy = "Write a list of tool descriptions, or its JSON text."
    if absent(value) or value == "":
        if isinstance(tools, str) and tools.strip() and value is None and tools.strip() != "null":
            raise InputError(where, "a JSON list of tools", shown(tools), remedy)
        return None
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, (list, tuple)):
        raise InputError(where, "a list of tools", shown(tools), remedy)
    return [_tool(tool, f"{where}[{number}]") for number, tool in enumerate(value)]


def _tool(tool: Any, where: str) -> Any:
    if callable(tool):  # transformers makes a description of a Python function
        return tool
    tool = parsed(tool) if isinstance(tool, str) else tool
    if not isinstance(tool, dict):
        raise InputError(where, "an object that describes a tool", shown(tool), "Write its name, description, parameters.")
    if isinstance(tool.get("function"), dict) or not isinstance(tool.get("name"), str):
        return tool
    known = {key: tool[key] for key in ("name", "description", "parameters", "strict") if tool.get(key) is not None}
    if "parameters" not in known and isinstance(tool.get("input_schema"), dict):
        known["parameters"] = tool["input_schema"]
    if "parameters" not in known:
        rest = {key: value for key, value in tool.items() if key not in (*known, "type", "input_schema", "cache_control")}
        known |= rest
    return {"type": "function", "function": known}
