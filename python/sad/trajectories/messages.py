"""Messages of a conversation in one form, and the forms in which chat templates accept them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sad.errors import InputError
from sad.trajectories.spans import Span


def shown(value: Any, limit: int = 80) -> str:
    """Returns the start of a value's `repr`, for an error message."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= limit else text[:limit] + "..."


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Returns the messages as a list.

    Raises:
        InputError: The messages are not a non-empty list of dicts with a role. The error names the message.
    """
    remedy = 'Write [{"role": "user", "content": "..."}, {"role": "assistant", ...}].'
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise InputError("messages", "a list of messages", shown(messages), remedy)
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(f"messages[{number}]", "an object with a role", shown(message), remedy)
    return list(messages)


class Call(NamedTuple):
    """A tool call.

    Args:
        name: Name of the tool.
        arguments: An object, or a string that does not hold a JSON object.
        id: The id that the tool message refers to; "" if unknown.
    """

    name: str
    arguments: Any
    id: str = ""


class Form(NamedTuple):
    """One way to write messages for a chat template.

    Args:
        reasoning_key: The key of the reasoning.
        json_arguments: Whether the arguments of a call are a JSON string, not an object.
        split_thoughts: Whether a think block that opens the content moves to the reasoning.
        merge_system: Whether all system messages become one, at the start.
        tools_as_users: Whether messages of tools have the role "user".
        null_content: Whether the content of a message that has only calls is null, not "".
        typed_content: Whether the content is a list with one text part.
        single_calls: Whether a message with several calls becomes several messages, each followed by its result.
        text_in_thought: Whether the text of a message with a thought and calls moves to the end of the thought, because the
            template has one place for both (gpt-oss).
        thought_after_prompt: Whether the last thought follows the generation prompt, because the template opens a think tag
            there and drops the thoughts of all messages.
    """

    reasoning_key: str = "reasoning_content"
    json_arguments: bool = False
    split_thoughts: bool = False
    merge_system: bool = False
    tools_as_users: bool = False
    null_content: bool = False
    typed_content: bool = False
    single_calls: bool = False
    text_in_thought: bool = False
    thought_after_prompt: bool = False


@dataclass
class Message:
    """One message of a conversation.

    Args:
        number: Index of the message in the trajectory, for error messages.
        role: "system", "user", "assistant" or "tool".
        content: The text.
        reasoning: The thoughts that the source keeps apart from the content.
        calls: The tool calls, in order.
        weight: Weight of the message's tokens. 0 for demonstrations and prompts, which the student does not learn.
        spans: Spans in `content` that the source states; None if it states none.
        keys: The other keys, such as `name` and `tool_call_id`.
    """

    number: int
    role: str
    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    weight: float = 1.0
    spans: list[Span] | None = None
    keys: dict[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The location of the message in error messages."""
        return f"messages[{self.number}]"

    @property
    def trained(self) -> bool:
        """Whether the student learns the message."""
        return self.weight > 0

    def as_dict(self, form: Form) -> dict[str, Any]:
        """Returns the dict that a chat template reads."""
        written: dict[str, Any] = {**self.keys, "role": self.role, "content": self.content}
        if self.role == "tool" and form.tools_as_users:
            written["role"] = "user"
        if self.reasoning:
            written[form.reasoning_key] = self.reasoning
        if form.null_content and self.calls and not self.content:
            written["content"] = None
        elif form.typed_content:
            written["content"] = [{"type": "text", "text": self.content}]
        if self.calls:
            written["tool_calls"] = [_call_dict(call, form) for call in self.calls]
        return written


def _call_dict(call: Call, form: Form) -> dict[str, Any]:
    arguments = call.arguments
    if form.json_arguments and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    written = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
    return {"id": call.id, **written} if call.id else written


THINK_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<thinking>", "</thinking>"))


def leading_thought(message: Message) -> Message:
    """Returns a message whose think block, if one opens the content, stands in `reasoning`; otherwise the message itself."""
    content = message.content.lstrip()
    for opening, closing in THINK_TAGS:
        inside, closed, rest = content.removeprefix(opening).partition(closing)
        if message.role == "assistant" and not message.reasoning and content.startswith(opening) and closed:
            return replace(message, reasoning=inside.strip(), content=rest.lstrip(), spans=None)
    return message


def text_in_thought(message: Message) -> Message:
    """Returns a message with a thought and calls whose text ends the thought; any other message itself."""
    if not (message.calls and message.reasoning.strip() and message.content.strip()):
        return message
    return replace(message, reasoning=f"{message.reasoning.strip()}\n\n{message.content.strip()}", content="", spans=None)


def one_call_per_message(messages: list[Message]) -> list[Message]:
    """Returns the conversation as an agent writes it that makes one call at a time.

    A message with several calls becomes one message per call. The result of a call follows it: the tool message with its id,
    or the next one. The text and the thoughts of the message stand in the first one.
    """
    written: list[Message] = []
    at = 0
    while at < len(messages):
        message, at = messages[at], at + 1
        if len(message.calls) < 2:
            written.append(message)
            continue
        results = []
        while at < len(messages) and messages[at].role == "tool":
            results.append(messages[at])
            at += 1
        for number, call in enumerate(message.calls):
            if number:
                message = Message(message.number, "assistant", weight=message.weight)
            written.append(replace(message, calls=[call]))
            named = [result for result in results if call.id and result.keys.get("tool_call_id") == call.id]
            unnamed = [result for result in results if not result.keys.get("tool_call_id") or not call.id]
            if found := (named or unnamed)[:1]:
                written += found
                results = [result for result in results if result is not found[0]]
        written += results
    return written
