"""The forms in which messages can be written for a chat template, and the messages of a form."""

from __future__ import annotations

import re
from itertools import product

from sad.trajectories.messages import THINK_TAGS, Form, Message, leading_thought, one_call_per_message, text_in_thought

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning", "tool_plan")
_FORMS = 48  # forms to try before the messages are refused


def prepare(messages: list[Message], form: Form) -> list[Message]:
    """Returns the messages of a form that moves text between messages or keys."""
    if form.merge_system:
        system = [message for message in messages if message.role == "system"]
        merged = Message(system[0].number, "system", "\n\n".join(message.content.strip() for message in system))
        messages = [merged, *(message for message in messages if message.role != "system")]
    if form.split_thoughts:
        messages = [leading_thought(message) for message in messages]
    if form.text_in_thought:
        messages = [text_in_thought(message) for message in messages]
    if form.single_calls:
        messages = one_call_per_message(messages)
    return messages


def possible_forms(messages: list[Message], template: str) -> list[Form]:
    """Returns the forms in which the messages can be written, the most common first.

    A think block in a content moves to the reasoning first if the template has a key for it and never writes such a tag.

    Args:
        messages: The conversation.
        template: The source of the chat template. Only keys of the reasoning that it names are tried.
    """
    reasons = any(message.reasoning for message in messages)
    tagged = any(leading_thought(message) is not message for message in messages)
    systems = [number for number, message in enumerate(messages) if message.role == "system"]
    calls = any(not isinstance(call.arguments, str) for message in messages for call in message.calls)
    tools = any(message.role == "tool" for message in messages) and not any(message.calls for message in messages)
    keys = [key for key in REASONING_KEYS if re.search(rf"\b{key}\b", template)] if reasons or tagged else []
    split = bool(keys) and tagged and not any(opening in template for opening, _ in THINK_TAGS)
    keys = keys or ["reasoning_content"]
    bare = any(message.calls and not message.content for message in messages)
    several = any(len(message.calls) > 1 for message in messages)
    full = any(text_in_thought(leading_thought(message)) is not leading_thought(message) for message in messages)
    options = (calls, tagged, systems not in ([], [0]), tools, bare, True, several, full, reasons or tagged)
    choices = (keys, *((False, True) if option else (False,) for option in options))
    forms = [Form(*values) for values in product(*choices)]
    forms = [form for form in forms if not form.thought_after_prompt or form.reasoning_key == keys[0]]
    usual = Form(keys[0], split_thoughts=split)
    return sorted(forms, key=lambda form: sum(value != other for value, other in zip(form, usual)))[:_FORMS]
