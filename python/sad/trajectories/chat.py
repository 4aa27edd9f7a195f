"""Segments chat messages: renders them with a tokenizer's chat template and labels the assistant's turns in the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sad.errors import InputError
from sad.trajectories.conversation import ChatSegmentation, Conversation, Loss
from sad.trajectories.formats import ChatFormat
from sad.trajectories.forms import possible_forms, prepare
from sad.trajectories.lines import Unparsed
from sad.trajectories.messages import Form, Message, leading_thought, text_in_thought
from sad.trajectories.normalize import normalize_messages
from sad.trajectories.options import check_unroll
from sad.trajectories.rendering import Renderer, template_variables
from sad.trajectories.tools import normalize_tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def segment_chat(
    messages: Sequence[dict[str, Any]],
    fmt: ChatFormat,
    tokenizer: PreTrainedTokenizerBase,
    include_prefix: bool,
    tools: Any,
    unroll: str = "auto",
    variables: dict[str, Any] | None = None,
) -> ChatSegmentation:
    """Renders the messages and labels the assistant's turns.

    Args:
        messages: The conversation.
        fmt: The tags and line formats.
        tokenizer: The tokenizer with the chat template.
        include_prefix: Whether spans include tags and prefixes.
        tools: The tool descriptions.
        unroll: "auto": one example; several if the template drops thoughts of earlier turns: each ends with a turn, and its
            context is what the template shows at inference. "always": one example per turn of the assistant. "never": one
            example; turns whose thoughts the template drops are not labelled, and reported.
        variables: Variables of the template, such as `enable_thinking`.

    Raises:
        InputError: The messages are malformed, or the template rejects or drops one. The error names the message.
    """
    check_unroll(unroll)
    normal = normalize_messages(messages)
    tools = normalize_tools(tools)
    variables = template_variables(tokenizer, variables)
    first: Loss | InputError | None = None
    own_text = ""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    for form in possible_forms(normal, template):
        if form.text_in_thought and not _rejected(first):
            continue
        renderer = Renderer(tokenizer, prepare(normal, form), form, tools, variables)
        conversation = Conversation(renderer, fmt, include_prefix)
        try:
            result, losses = _examples(conversation, unroll)
        except InputError as error:
            if first is None or (isinstance(first, InputError) and _rejected(error) > _rejected(first)):
                first = error
            continue
        if not losses:
            return _with_reports(result, normal, tools, form)
        if first is None or isinstance(first, InputError):
            first = losses[0]
            own_text = conversation.own_text(first.message)
    raise first if isinstance(first, InputError) else first.error(own_text)


def _rejected(error: Loss | InputError | None) -> bool:
    """Returns whether a template raised the error itself, by `raise_exception`."""
    return isinstance(error, InputError) and error.got.startswith("TemplateError: ")


def _examples(conversation: Conversation, unroll: str) -> tuple[ChatSegmentation, list[Loss]]:
    """Returns one example, or several if the text of the whole conversation lacks parts of earlier turns."""
    messages = conversation.messages
    turns = {number for number, message in enumerate(messages) if message.role == "assistant"}
    whole, losses, _ = conversation.label(len(messages), turns)
    result = ChatSegmentation()
    pending = {number for number in turns if messages[number].trained}
    wrong = any(loss.message.role != "assistant" for loss in losses)
    if wrong or not pending or (not losses and unroll != "always"):
        result.add(whole)
        return result, losses if wrong or pending else []
    examples: list[ChatSegmentation] = []
    missing: list[Loss] = []
    while pending:
        last = max(pending)
        example, found, done = conversation.label(last + 1, pending, only=last if unroll == "always" else None)
        if last not in done:
            missing += [loss for loss in found if loss.message is messages[last]]
        pending -= {last} if unroll == "always" else done | {last}
        examples.append(example)
    if unroll == "never" and not missing:
        reason = (
            "the chat template drops or rewrites it after later messages: not labelled (unroll auto makes examples of it)"
        )
        whole.unparsed += [Unparsed(1, "", f"{loss.message.where}: {reason}") for loss in losses if loss.message.trained]
        examples = [whole]
    for example in reversed(examples):
        result.add(example)
    return result, missing[::-1]


def _with_reports(result: ChatSegmentation, messages: list[Message], tools: Any, form: Form) -> ChatSegmentation:
    """Adds what is not wrong, but should be known: no assistant message, tools that the text lacks, calls one by one."""
    for message in messages if form.text_in_thought else ():
        if text_in_thought(split := leading_thought(message) if form.split_thoughts else message) is not split:
            reason = "the chat template has one place for a thought and a text before a call: the text ends the thought"
            result.unparsed.append(Unparsed(1, "", f"{message.where}: {reason}"))
    for message in messages if form.single_calls else ():
        if len(message.calls) > 1:
            reason = (
                f"the chat template writes one call per message: its {len(message.calls)} calls are messages of their own"
            )
            result.unparsed.append(Unparsed(1, "", f"{message.where}: {reason}, each followed by its result"))
    if not any(message.role == "assistant" for message in messages):
        result.unparsed.append(Unparsed(1, "", "the conversation has no assistant message: nothing to train on"))
    elif not any(message.trained for message in messages if message.role == "assistant"):
        result.unparsed.append(Unparsed(1, "", "all assistant messages are excluded from training by their keys"))
    for tool in tools or ():
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str) and name not in result.text:
            result.unparsed.append(
                Unparsed(1, "", f"the chat template does not write the tools: {name!r} is not in the text")
            )
            break
    return result
