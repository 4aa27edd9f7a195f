"""Labels one rendering of a conversation: the turns of the assistant, and what the environment answers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from sad.errors import InputError
from sad.trajectories.formats import ChatFormat
from sad.trajectories.lines import Unparsed
from sad.trajectories.message_parts import Part, find_content, find_parts
from sad.trajectories.messages import Message
from sad.trajectories.pieces import Piece, spans_of
from sad.trajectories.rendering import Region, Renderer
from sad.trajectories.spans import Span, SpanKind, WeightedRange

_THOUGHT_MARKS = ("<|channel>thought", "<|channel|>analysis<|message|>")  # what Gemma 4 and harmony write before a thought
_CLOSING_MARK = re.compile(r"\s*(<(?:\||[^|<>]{1,40}\|)[^<>\s]{0,40}>)")


@dataclass
class ChatSegmentation:
    """A rendered conversation and its labels.

    Args:
        text: The text; with several examples, their texts one after the other.
        spans: Reasoning and action spans.
        observations: Spans of what the environment wrote after the model's first turn.
        unparsed: Places that do not fit.
        starts: Where each example starts in the text. A template that drops earlier thoughts needs several examples.
        weights: The turns whose tokens have a weight other than 1.
    """

    text: str = ""
    spans: list[Span] = field(default_factory=list)
    observations: list[Span] = field(default_factory=list)
    unparsed: list[Unparsed] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    weights: list[WeightedRange] = field(default_factory=list)

    def add(self, other: ChatSegmentation) -> None:
        """Appends an example."""
        at, line = len(self.text), self.text.count("\n")
        self.starts.append(at)
        self.text += other.text
        self.spans += [Span(s + at, e + at, kind) for s, e, kind in other.spans]
        self.observations += [Span(s + at, e + at, kind) for s, e, kind in other.observations]
        self.unparsed += [item._replace(line=item.line + line) for item in other.unparsed]
        self.weights += [WeightedRange(s + at, e + at, weight) for s, e, weight in other.weights]


class Loss(NamedTuple):
    """A part of a message that the rendered text does not hold."""

    message: Message
    part: str
    fragment: str

    def error(self, own_text: str) -> InputError:
        """Returns the error; `own_text` is the rendering that ends with this message."""
        fragment = self.fragment if len(self.fragment) <= 60 else self.fragment[:60] + "..."
        squeezed, within = "".join(self.fragment.split()).casefold(), "".join(own_text.split()).casefold()
        if squeezed in within:
            cause = "The chat template rewrites it."
        elif self.message.role == "assistant":
            cause = f"The chat template drops or rewrites it: it has no place for the {self.part} of such a message."
        else:
            cause = f"The chat template drops it: it has no place for a message of role {self.message.role!r} here."
        remedy = f"{cause} Set a tokenizer.chat_template that keeps it, or move it to another message."
        where = f"{self.message.where}"
        return InputError(where, f"its {self.part} in the rendered text", f"a rendering without {fragment!r}", remedy)


@dataclass
class Conversation:
    """One conversation in one form.

    Args:
        renderer: Renders the messages.
        fmt: The tags and line formats.
        include_prefix: Whether spans include tags and prefixes.
    """

    renderer: Renderer
    fmt: ChatFormat
    include_prefix: bool

    @property
    def messages(self) -> list[Message]:
        return self.renderer.messages

    def label(self, count: int, numbers: set[int], only: int | None = None) -> tuple[ChatSegmentation, list[Loss], set[int]]:
        """Labels one example: the rendering of the first `count` messages.

        Args:
            count: Number of messages.
            numbers: The assistant messages to label.
            only: The assistant message to which the labels are limited, with the observations before it. None: no limit.

        Returns:
            The example, the parts that its text lacks, and the messages that are labelled.
        """
        text = self.renderer.render(count)
        example, losses, done, regions = ChatSegmentation(text), [], set(), []
        after = 0
        for number, message in enumerate(self.messages[:count]):
            if message.role != "assistant" or number not in numbers:
                continue
            region = self.renderer.find_turn(text, number, after)
            found = find_parts(text, message, region, self.fmt) if region else None
            if found is None:
                losses.append(self._assistant_loss(number))
                continue
            done.add(number)
            regions.append((number, region))
            after = region.end
            if not found:
                line = text.count("\n", 0, region.start) + 1
                example.unparsed.append(Unparsed(line, "", f"{message.where} of the assistant is empty"))
            elif message.trained:
                self._label_turn(example, found, region)
                if message.weight != 1:
                    example.weights.append(WeightedRange(region.start, region.end, message.weight))
        losses += self._label_observations(example, regions, count)
        if only is not None:
            start = max((region.end for number, region in regions if number < only), default=0)
            example.spans = [span for span in example.spans if span.start >= start]
            example.observations = [span for span in example.observations if span.start >= start]
            line = text.count("\n", 0, start) + 1
            example.unparsed = [item for item in example.unparsed if item.line >= line]
        return example, losses, done

    def _assistant_loss(self, number: int) -> Loss:
        """Returns the first part of an assistant message that its own rendering lacks, else the first part."""
        message = self.messages[number]
        parts = [("reasoning", message.reasoning.strip()), ("text", message.content.strip())]
        parts += [("calls", call.name) for call in message.calls]
        parts = [part for part in parts if part[1]] or [("text", "")]
        own = self.own_text(message)
        return Loss(message, *next((part for part in parts if part[1] not in own), parts[0]))

    def own_text(self, message: Message) -> str:
        """Returns what the template writes for a message: its turn, or all the text if the turn is not found."""
        number = next(n for n, other in enumerate(self.messages) if other is message)
        try:
            text = self.renderer.render(number + 1)
            region = self.renderer.find_turn(text, number, 0) if message.role == "assistant" else None
        except InputError:
            return ""
        return text[region.start : region.end] if region else text

    def _label_turn(self, example: ChatSegmentation, parts: list[Part], region: Region) -> None:
        """Adds the spans of a turn, without a gap between its parts."""
        text, after = example.text, region.start
        for number, found in enumerate(parts):
            start = self._start(text, found, after, first=number == 0, region=region)
            last = number == len(parts) - 1
            if found.role == "calls" and not last:  # the arguments reach to the text after them
                after = parts[number + 1].start
            else:
                after = region.end if last else self._end(text, found, region)
            if found.role == "text":
                self._label_text(example, found, start, after)
            else:
                kind = SpanKind.REASON if found.role == "reasoning" else SpanKind.ACT
                example.spans.append(Span(start, after, kind))

    def _label_text(self, example: ChatSegmentation, found: Part, start: int, end: int) -> None:
        """Adds the spans of a message's visible text, whose part of the turn is [start, end)."""
        at = found.start
        pieces = [Piece(p.start + at, p.end + at, p.kind, p.content + at) for p in found.pieces]
        if pieces and pieces[0].kind is not SpanKind.NONE and pieces[0].start == at:
            opened = pieces[0].content > at
            pieces[0] = pieces[0]._replace(start=start, content=pieces[0].content if opened else start)
        if pieces and pieces[-1].kind is not SpanKind.NONE:
            pieces[-1] = pieces[-1]._replace(end=end)
        example.spans += spans_of(pieces, self.include_prefix)
        example.observations += [Span(p.start, p.end, SpanKind.OBSERVE) for p in pieces if p.kind is SpanKind.NONE]
        line = example.text.count("\n", 0, at) if found.unparsed else 0
        example.unparsed += [item._replace(line=item.line + line) for item in found.unparsed]

    def _start(self, text: str, found: Part, after: int, first: bool, region: Region) -> int:
        """Returns the start of a part's span; the previous part ends at `after`."""
        lead = text[after : found.start]
        if found.role == "reasoning":
            openings = "|".join(re.escape(opening) for opening in (*dict(self.fmt.think_tags), *_THOUGHT_MARKS))
            tag = re.search(rf"(?:{openings})\s*\Z", lead)
        elif found.role == "calls":
            tag = re.search(rf"(?:{'|'.join(map(re.escape, self.fmt.call_openers))})\s*", lead)
        else:
            tag = None
        if tag:
            return after + (tag.start() if self.include_prefix else tag.end())
        empty = first and any(closing in lead for _, closing in self.fmt.think_tags)  # the template writes an empty thought
        if empty or not self.include_prefix or (first and not region.has_header):
            return found.start
        return after + len(lead) - len(lead.lstrip())

    def _end(self, text: str, found: Part, region: Region) -> int:
        """Returns the end of a part that is not the last: after its closing tag or mark, and blanks."""
        closings = "|".join(re.escape(closing) for _, closing in self.fmt.think_tags)
        end = re.compile(rf"(?:\s*(?:{closings}))?").match(text, found.end, region.end).end()
        if end == found.end and self.renderer.specials is not None:
            mark = _CLOSING_MARK.match(text, found.end, region.end)
            closes = mark and not mark[1].startswith("<|tool") and "begin" not in mark[1] and "start" not in mark[1]
            if closes and self.renderer.specials.fullmatch(mark[1]):
                end = mark.end()
        return end + len(text[end : region.end]) - len(text[end : region.end].lstrip())

    def _label_observations(self, example: ChatSegmentation, regions: list[tuple[int, Region]], count: int) -> list[Loss]:
        """Adds the contents of user and tool messages after a turn as observations; returns what the text lacks."""
        text, losses = example.text, []
        ends = {number: region.end for number, region in regions}
        starts = {number: region.start for number, region in regions}
        limits, next_turn = [len(text)] * count, len(text)
        for number in reversed(range(count)):
            limits[number] = next_turn
            next_turn = starts.get(number, next_turn)
        cursor, spoke = 0, False
        for number, message in enumerate(self.messages[:count]):
            if message.role == "assistant":
                if number in ends:
                    cursor, spoke = ends[number], True
                continue
            limit = limits[number]
            span = find_content(text, message.content.strip(), cursor, limit) if message.content.strip() else None
            if span is not None:
                cursor = span.end
                if spoke and message.role != "system":
                    example.observations.append(span)
            elif message.content.strip() and find_content(text, message.content.strip(), 0, len(text)) is None:
                losses.append(Loss(message, "text", message.content.strip()))
        example.observations.sort()
        return losses
