"""`segment`: from a trajectory's text or messages to the spans the model wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sad.errors import InputError
from sad.trajectories.chat import segment_chat
from sad.trajectories.formats import ChatFormat, Format, get_format
from sad.trajectories.lines import Unparsed, segment_lines
from sad.trajectories.spans import Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Segmentation", "Unparsed", "segment"]


class Segmentation(NamedTuple):
    """A text, the spans of reasoning and action in it (in order, not overlapping), and where it did not fit its format."""

    text: str
    spans: list[Span]
    unparsed: list[Unparsed]


def segment(
    text_or_messages: str | Sequence[dict[str, Any]],
    format: str | Format | ChatFormat = "sad",
    *,
    include_prefix: bool = True,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tools: Sequence[dict[str, Any]] | None = None,
) -> Segmentation:
    r"""Finds what the model wrote: reasoning and action spans by the format's prefixes (section D.1 of the paper).

    A span runs from the first character of its prefix through its line terminator (`\n` or `\r\n`), so that the
    student learns to end the line and hand over to the environment. Leading blanks, blank lines between spans, prompts
    and observations are in no span.

    Args:
        text_or_messages: The trajectory's text, or with a chat format its messages (dicts with role and content).
        format: A name in `sad.formats()`, or a format.
        include_prefix: Whether spans hold their prefix (`Reasoning:`); the student must learn to write it. Without,
            they start after the prefix's blanks.
        tokenizer: Whose chat template renders messages; needed for chat formats alone.
        tools: Tool descriptions for the chat template.

    Returns:
        `Segmentation`: the text (of messages: as rendered), spans, and unparsed lines.

    Raises:
        InputError: The format is unknown or does not fit what was given, or a chat template drops or rewrites
            what the assistant wrote.

    Example:
        >>> segment("You see a mug.\nReasoning: I need it.\nAction: take mug\n").spans
        [Span(start=15, end=37, kind=<SpanKind.REASON: 1>), Span(start=37, end=54, kind=<SpanKind.ACT: 2>)]
    """
    form = get_format(format)
    if isinstance(form, ChatFormat):
        if isinstance(text_or_messages, str):
            raise InputError("text", "messages, as format 'chat' reads them", "a string", "Name the text's format.")
        if tokenizer is None:
            remedy = "Pass the student's tokenizer, whose chat template turns the messages into text."
            raise InputError("tokenizer", "a tokenizer with a chat template", "None", remedy)
        return Segmentation(*segment_chat(text_or_messages, form, tokenizer, include_prefix, tools))
    if not isinstance(text_or_messages, str):
        got = type(text_or_messages).__name__
        raise InputError("text", f"a string, as format {form.name!r} reads it", got, "Messages need format='chat'.")
    return Segmentation(text_or_messages, *segment_lines(text_or_messages, form, include_prefix))
