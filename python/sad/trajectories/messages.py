"""What an assistant message consists of: reasoning, visible text, tool calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sad.errors import InputError
from sad.trajectories.formats import ChatFormat


class Part(NamedTuple):
    """A part of an assistant message; `needles` are what must occur of it in the rendered text, in order.

    `role` is "reasoning", "text" or "calls".
    """

    role: str
    needles: tuple[str, ...]


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """A non-empty list of dicts with a role.

    Raises:
        InputError: It is not; the message says which one.
    """
    remedy = 'Write [{"role": "user", "content": "..."}, {"role": "assistant", ...}].'
    if not isinstance(messages, Sequence) or not messages:
        raise InputError("messages", "a list of messages", repr(messages)[:80], remedy)
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(f"messages[{number}]", "an object with a role", repr(message)[:80], remedy)
    return list(messages)


def content_text(message: dict[str, Any]) -> str:
    """A message's content as one string; lists of typed parts are joined."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if isinstance(part, dict))


def _split_thoughts(content: str, form: ChatFormat) -> Iterator[Part]:
    """Content as reasoning, inside tags, and visible text. A tag that is missing is taken to be at the content's edge."""
    for opening, closing in form.think_tags:
        if opening not in content and closing not in content:
            continue
        while content:
            before, closed, after = content.partition(closing)
            visible, opened, inside = before.partition(opening)
            if closed and not opened:
                visible, inside = "", before
            yield Part("text", (visible.strip(),))
            yield Part("reasoning", (inside.strip(),))
            content = after
        return
    yield Part("text", (content.strip(),))


def _call_names(message: dict[str, Any], where: str) -> tuple[str, ...]:
    calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
    try:
        return tuple((call.get("function") or call)["name"] for call in calls)
    except (AttributeError, KeyError, TypeError):
        remedy = 'Write {"type": "function", "function": {"name": ..., "arguments": ...}}.'
        raise InputError(f"{where}.tool_calls", "calls with a name", repr(calls)[:80], remedy) from None


def message_parts(message: dict[str, Any], form: ChatFormat, where: str) -> list[Part]:
    """The parts of an assistant message that are not empty, in the order templates write them."""
    apart = next((message[key] for key in form.reasoning_keys if isinstance(message.get(key), str)), "")
    parts = [Part("reasoning", (apart.strip(),)), *_split_thoughts(content_text(message), form)]
    parts = [part for part in parts if part.needles[0]]
    names = _call_names(message, where)
    return [*parts, Part("calls", names)] if names else parts
