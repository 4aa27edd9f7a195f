"""Brings the messages of every source to one form, before a chat template sees them.

The keys come from the APIs and the files of many programs: OpenAI, Anthropic, ShareGPT, ms-swift, LangChain and others.
Null values and empty lists count as absent. Whatever has no meaning here raises an error that names the message.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from sad.errors import InputError
from sad.trajectories.content_parts import CONTENT_REMEDY, calls_in_text, is_result, make_call, read_parts, read_text
from sad.trajectories.json_values import absent, first_of, parsed, to_json
from sad.trajectories.messages import Call, Message, check_messages, shown
from sad.trajectories.spans import Span, SpanKind
from sad.trajectories.training_keys import TRAINED_KEYS, UNTRAINED_KEYS, message_weight

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
_READ_KEYS = frozenset(
    {"role", "content", "tool_calls", "function_call", "reasoning_details", "spans"}
    | {*REASONING_KEYS, *TRAINED_KEYS, *UNTRAINED_KEYS}
)


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
    weight = message_weight(message, where)
    keys = {key: value for key, value in message.items() if key not in _READ_KEYS and not absent(value)}
    base = Message(number, role, weight=weight, keys=keys)
    if isinstance(content, dict) and isinstance(content.get("type"), str):
        content = [content]
    if role == "tool":
        return _tool_messages(base, content, where)
    if not isinstance(content, (str, list, tuple, type(None))):
        raise InputError(f"{where}.content", "a string or a list of parts", shown(content), "Write the text as a string.")
    if role == "assistant" and isinstance(content, (list, tuple)) and any(map(is_result, content)):
        return _split_at_results(message, content, number)
    blocks = read_parts([content] if isinstance(content, str) else content or (), where)
    base.content = "".join(blocks.texts)
    base.spans = _own_spans(message.get("spans"), content, where)
    if role != "assistant":
        if blocks.thoughts or blocks.calls:
            raise InputError(f"{where}.content", f"no thoughts or calls in a {role} message", shown(content), CONTENT_REMEDY)
        results = [Message(number, "tool", text, keys={"tool_call_id": of} if of else {}) for text, of in blocks.results]
        return [*results, base] if base.content.strip() or not results else results
    base.calls = _calls(message, where)
    if written in _CALLING_ROLES and not base.calls:
        if (calls := calls_in_text(base.content, where)) is not None:
            base.calls, base.content = calls, ""
    known = {call.id for call in base.calls if call.id}  # LangChain states the calls twice
    base.calls += [call for call in blocks.calls if not base.calls or (call.id and call.id not in known)]
    base.reasoning = "\n".join(filter(None, [_reasoning(message, where), *blocks.thoughts]))
    return [base]


def _split_at_results(message: dict[str, Any], content: Sequence[Any], number: int) -> list[Message]:
    """Returns the messages of a turn in which the API ran tools: what the model wrote before and after each result."""
    found: list[Message] = []
    for results, group in groupby(content, is_result):
        part = {**message, "content": list(group)}
        if results:
            base = Message(number, "tool", weight=message_weight(message, f"messages[{number}]"))
            found += _tool_messages(base, part["content"], f"messages[{number}]")
        else:
            found += _normalize(part, number)
        message = {key: value for key, value in message.items() if key not in (*REASONING_KEYS, *_ONCE)}
    return found


_ONCE = ("tool_calls", "function_call", "reasoning_details", "provider_specific_fields", "spans")


def _tool_messages(base: Message, content: Any, where: str) -> list[Message]:
    typed = isinstance(content, list) and content and all(isinstance(x, dict) and x.get("type") for x in content)
    if typed and all(map(is_result, content)):
        results = read_parts(content, where).results
        return [
            Message(base.number, "tool", text, weight=base.weight, keys={**base.keys, "tool_call_id": of})
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
        if alone and last is not None and last.role == "assistant" and last.weight == message.weight:
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
