"""Checks chat messages and splits an assistant message into reasoning, visible text and tool calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sad.errors import InputError
from sad.trajectories.formats import ChatFormat


class Part(NamedTuple):
    """One part of an assistant message.

    Args:
        role: "reasoning", "text" or "calls".
        fragments: Strings that the rendered text must contain for this part, in this order.
    """

    role: str
    fragments: tuple[str, ...]


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Returns the messages as a list.

    Raises:
        InputError: The messages are not a non-empty list of dicts with a role. The error names the message.
    """
    remedy = 'Write [{"role": "user", "content": "..."}, {"role": "assistant", ...}].'
    if not isinstance(messages, Sequence) or not messages:
        raise InputError("messages", "a list of messages", repr(messages)[:80], remedy)
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(f"messages[{number}]", "an object with a role", repr(message)[:80], remedy)
    return list(messages)


def content_text(message: dict[str, Any]) -> str:
    """Returns the content of a message as one string; joins a list of typed parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if isinstance(part, dict))


def _split_thoughts(content: str, fmt: ChatFormat) -> Iterator[Part]:
    """Yields reasoning (inside think tags) and visible text. A missing tag counts as if it stood at the content's edge."""
    for opening, closing in fmt.think_tags:
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
    """Returns the names of the called tools, in order."""
    calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
    try:
        return tuple((call.get("function") or call)["name"] for call in calls)
    except (AttributeError, KeyError, TypeError):
        remedy = 'Write {"type": "function", "function": {"name": ..., "arguments": ...}}.'
        raise InputError(f"{where}.tool_calls", "calls with a name", repr(calls)[:80], remedy) from None


def message_parts(message: dict[str, Any], fmt: ChatFormat, where: str) -> list[Part]:
    """Returns the non-empty parts of an assistant message, in the order in which templates write them."""
    reasoning = next((message[key] for key in fmt.reasoning_keys if isinstance(message.get(key), str)), "")
    parts = [Part("reasoning", (reasoning.strip(),)), *_split_thoughts(content_text(message), fmt)]
    parts = [part for part in parts if part.fragments[0]]
    names = _call_names(message, where)
    return [*parts, Part("calls", names)] if names else parts
