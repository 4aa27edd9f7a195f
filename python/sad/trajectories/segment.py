"""Finds the spans that the model wrote in the text or the messages of a trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sad.errors import InputError
from sad.trajectories.chat import segment_chat
from sad.trajectories.conversation import ChatSegmentation
from sad.trajectories.formats import ChatFormat, Format, get_format
from sad.trajectories.lines import Unparsed, segment_lines
from sad.trajectories.rendered import segment_rendered
from sad.trajectories.spans import Span, WeightedRange

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Segmentation", "Unparsed", "segment"]


class Segmentation(NamedTuple):
    """A text, its reasoning and action spans, its observations, and the places that do not fit its format.

    Attributes:
        text: The text; for messages, the rendered conversation.
        spans: The spans that the model wrote, in the order of the text; they do not overlap.
        unparsed: One `Unparsed` per place that does not fit the format.
        observations: The spans in which the environment answers the model, of kind `Span.OBSERVE`, in the order of the text.
            They overlap neither each other nor `spans`.
        starts: Where each training example starts in the text. Messages need several examples if the chat template drops
            thoughts of earlier turns (see `unroll`); the text then holds one rendering after the other.
        weights: The messages whose tokens have a weight other than 1, as ranges of the text, in its order.
    """

    text: str
    spans: list[Span]
    unparsed: list[Unparsed]
    observations: list[Span]
    starts: tuple[int, ...] = (0,)
    weights: tuple[WeightedRange, ...] = ()

    def examples(self) -> list[Segmentation]:
        """Returns one segmentation per training example."""
        if len(self.starts) < 2:
            return [self]
        cut = []
        for start, end in zip(self.starts, [*self.starts[1:], len(self.text)]):
            inside = [
                [Span(s - start, e - start, kind) for s, e, kind in spans if start <= s and e <= end]
                for spans in (self.spans, self.observations)
            ]
            weights = tuple(
                WeightedRange(s - start, e - start, weight) for s, e, weight in self.weights if start <= s and e <= end
            )
            cut.append(Segmentation(self.text[start:end], inside[0], [], inside[1], weights=weights))
        return cut


def _of_chat(found: ChatSegmentation) -> Segmentation:
    weights = tuple(found.weights)
    return Segmentation(found.text, found.spans, found.unparsed, found.observations, tuple(found.starts), weights)


def segment(
    text_or_messages: str | Sequence[dict[str, Any]],
    format: str | Format | ChatFormat = "sad",
    *,
    include_prefix: bool = True,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tools: Sequence[dict[str, Any]] | str | None = None,
    prompt_chars: int = 0,
    unroll: str = "auto",
    template_variables: dict[str, Any] | None = None,
) -> Segmentation:
    r"""Finds reasoning and action spans by the prefixes of a format (section D.1 of the paper).

    A span runs from the first character of its prefix through its line terminator (`\n` or `\r\n`), so that the
    student learns to end the line and hand over to the environment. Leading blanks, blank lines between spans, prompts
    and observations belong to no span.

    What the environment wrote after the first span is an observation: from the first character of its first line through
    the line terminator of its last line. The text before the first span is the prompt and not an observation.

    Args:
        text_or_messages: The text of the trajectory. For a chat format its messages (dicts with role and content), or text
            with the marks of a chat template.
        format: The name of a registered format (see `sad.formats()`), or a format.
        include_prefix: Whether spans include their prefix (`Reasoning:`), so that the student learns to write it. If
            False, spans start after the prefix and the blanks that follow it.
        tokenizer: The tokenizer whose chat template renders the messages. Only chat formats need it.
        tools: Tool descriptions for the chat template, as a list or as JSON text.
        prompt_chars: Number of characters at the start of a text that are a prompt: nothing in it is a span.
        unroll: For messages. "auto": one example; several if the chat template drops thoughts of earlier turns, each as the
            template shows it at inference. "always": one example per turn of the assistant. "never": one example, in which
            turns without their thoughts are not labelled.
        template_variables: For messages: variables of the chat template, such as {"enable_thinking": False}.

    Returns:
        `Segmentation`: the text (for messages: as rendered), the spans, the unparsed places, and the observations.

    Raises:
        InputError: The format is unknown or does not fit the input, or a chat template drops or rewrites what the
            assistant wrote.

    Example:
        >>> segment("You see a mug.\nReasoning: I need it.\nAction: take mug\n").spans
        [Span(start=15, end=37, kind=<SpanKind.REASON: 1>), Span(start=37, end=54, kind=<SpanKind.ACT: 2>)]
    """
    fmt = get_format(format)
    if isinstance(fmt, ChatFormat):
        if isinstance(text_or_messages, str):
            return _of_chat(segment_rendered(text_or_messages, fmt, tokenizer, include_prefix, prompt_chars))
        if tokenizer is None:
            remedy = "Pass the student's tokenizer; its chat template renders the messages as text."
            raise InputError("tokenizer", "a tokenizer with a chat template", "None", remedy)
        return _of_chat(segment_chat(text_or_messages, fmt, tokenizer, include_prefix, tools, unroll, template_variables))
    if not isinstance(text_or_messages, str):
        got = type(text_or_messages).__name__
        remedy = "Pass a string, or format='chat' for messages."
        raise InputError("text", f"a string, because the format is {fmt.name!r}", got, remedy)
    found = segment_lines(text_or_messages[prompt_chars:], fmt, include_prefix)
    line = text_or_messages.count("\n", 0, prompt_chars)
    spans, observations = (
        [Span(s + prompt_chars, e + prompt_chars, kind) for s, e, kind in spans]
        for spans in (found.spans, found.observations)
    )
    unparsed = [item._replace(line=item.line + line) for item in found.unparsed]
    return Segmentation(text_or_messages, spans, unparsed, observations)
