"""Segments chat messages: renders them with a tokenizer's chat template and labels the assistant's turns in the result."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sad.errors import InputError
from sad.trajectories.content import Piece, spans_of, split_content
from sad.trajectories.formats import ChatFormat
from sad.trajectories.lines import Unparsed
from sad.trajectories.messages import Form, Message
from sad.trajectories.normalize import normalize_messages, normalize_tools, parsed
from sad.trajectories.options import check_unroll
from sad.trajectories.rendering import Region, Renderer, possible_forms, prepare
from sad.trajectories.spans import Span, SpanKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    """

    text: str = ""
    spans: list[Span] = field(default_factory=list)
    observations: list[Span] = field(default_factory=list)
    unparsed: list[Unparsed] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    def add(self, other: ChatSegmentation) -> None:
        """Appends an example."""
        at, line = len(self.text), self.text.count("\n")
        self.starts.append(at)
        self.text += other.text
        self.spans += [Span(s + at, e + at, kind) for s, e, kind in other.spans]
        self.observations += [Span(s + at, e + at, kind) for s, e, kind in other.observations]
        self.unparsed += [item._replace(line=item.line + line) for item in other.unparsed]


class _Found(NamedTuple):
    """A part of an assistant message in the rendered text; pieces and lines are relative to `start`."""

    role: str
    start: int
    end: int
    pieces: Sequence[Piece] = ()
    unparsed: Sequence[Unparsed] = ()


class _Loss(NamedTuple):
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
class _Conversation:
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

    def label(
        self, count: int, numbers: set[int], only: int | None = None
    ) -> tuple[ChatSegmentation, list[_Loss], set[int]]:
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
            found = self._find_parts(text, message, region) if region else None
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
        losses += self._label_observations(example, regions, count)
        if only is not None:
            start = max((region.end for number, region in regions if number < only), default=0)
            example.spans = [span for span in example.spans if span.start >= start]
            example.observations = [span for span in example.observations if span.start >= start]
            line = text.count("\n", 0, start) + 1
            example.unparsed = [item for item in example.unparsed if item.line >= line]
        return example, losses, done

    def _assistant_loss(self, number: int) -> _Loss:
        """Returns the first part of an assistant message that its own rendering lacks, else the first part."""
        message = self.messages[number]
        parts = [("reasoning", message.reasoning.strip()), ("text", message.content.strip())]
        parts += [("calls", call.name) for call in message.calls]
        parts = [part for part in parts if part[1]] or [("text", "")]
        own = self.own_text(message)
        return _Loss(message, *next((part for part in parts if part[1] not in own), parts[0]))

    def own_text(self, message: Message) -> str:
        """Returns what the template writes for a message: its turn, or all the text if the turn is not found."""
        number = next(n for n, other in enumerate(self.messages) if other is message)
        try:
            text = self.renderer.render(number + 1)
            region = self.renderer.find_turn(text, number, 0) if message.role == "assistant" else None
        except InputError:
            return ""
        return text[region.start : region.end] if region else text

    def _find_parts(self, text: str, message: Message, region: Region) -> list[_Found] | None:
        """Returns the parts of a message in its turn, in the order of the text; None if one is missing."""
        content = message.content.strip()
        whole = [("reasoning", message.reasoning.strip()), ("text", content)]
        inner = [("reasoning", message.reasoning.strip()), *self._visible_parts(content, bool(message.reasoning))]
        for parts in (whole, inner):
            parts = [part for part in parts if part[1]] + [("calls", call.name) for call in message.calls]
            found = self._find_in_order(text, parts, region)
            calls = len(message.calls)
            for before in (0, 1) if calls else ():  # some templates write the calls first, or before the text
                if found is None and len(parts) > calls + before:
                    ordered = [*parts[:before], *parts[-calls:], *parts[before:-calls]]
                    found = self._find_in_order(text, ordered, region)
            if found is not None:
                return [self._with_pieces(text, message, item) for item in self._join_calls(found)]
        return None

    def _visible_parts(self, content: str, apart: bool) -> Iterator[tuple[str, str]]:
        """Yields the thoughts and the visible text of a content whose think tags the template rewrites."""
        split = split_content(content, self.fmt, calls_follow=False, thoughts_apart=apart)
        start = 0
        for piece in split.pieces:
            opened = next((tags for tags in self.fmt.think_tags if content.startswith(tags[0], piece.start)), None)
            closes = next((tags for tags in self.fmt.think_tags if content.endswith(tags[1], 0, piece.end)), None)
            tags = opened or closes
            stripped = content[piece.start : piece.end].strip()
            closes_here = tags is not None and stripped.endswith(tags[1])
            if piece.kind is SpanKind.REASON and (opened or closes_here):
                yield "text", content[start : piece.start].strip()
                yield "reasoning", stripped.removeprefix(tags[0]).removesuffix(tags[1]).strip()
                start = piece.end
        yield "text", content[start:].strip()

    def _find_in_order(self, text: str, parts: list[tuple[str, str]], region: Region) -> list[_Found] | None:
        found: list[_Found] = []
        cursor = region.start
        for number, (role, fragment) in enumerate(parts):
            last_text = role == "text" and number == len(parts) - 1
            at = text.rfind(fragment, cursor, region.end) if last_text else self._find(text, fragment, cursor, region.end)
            if at < 0:
                return None
            found.append(_Found(role, at, at + len(fragment)))
            cursor = at + len(fragment)
        return found

    def _find(self, text: str, fragment: str, start: int, end: int) -> int:
        """Finds a fragment, preferably where it does not begin inside of a word of the template."""
        at = first = text.find(fragment, start, end)
        for _ in range(50):
            if at < 0 or at == start or not (text[at - 1].isalnum() and fragment[0].isalnum()):
                return at if at >= 0 else first
            at = text.find(fragment, at + 1, end)
        return first

    def _join_calls(self, found: list[_Found]) -> list[_Found]:
        joined: list[_Found] = []
        for item in found:
            if joined and item.role == joined[-1].role == "calls":
                joined[-1] = joined[-1]._replace(end=item.end)
            else:
                joined.append(item)
        return joined

    def _with_pieces(self, text: str, message: Message, found: _Found) -> _Found:
        if found.role != "text":
            return found
        content = text[found.start : found.end]
        if message.spans is not None and content == message.content.strip():
            lead = len(message.content) - len(message.content.lstrip())
            moved = [(max(0, s - lead), min(len(content), e - lead), kind) for s, e, kind in message.spans]
            return found._replace(pieces=[Piece(s, e, kind, s) for s, e, kind in moved if s < e])
        apart = bool(message.reasoning) or content != message.content.strip()
        split = split_content(content, self.fmt, calls_follow=bool(message.calls), thoughts_apart=apart)
        return found._replace(pieces=split.pieces, unparsed=split.unparsed)

    def _label_turn(self, example: ChatSegmentation, parts: list[_Found], region: Region) -> None:
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

    def _label_text(self, example: ChatSegmentation, found: _Found, start: int, end: int) -> None:
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

    def _start(self, text: str, found: _Found, after: int, first: bool, region: Region) -> int:
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

    def _end(self, text: str, found: _Found, region: Region) -> int:
        """Returns the end of a part that is not the last: after its closing tag or mark, and blanks."""
        closings = "|".join(re.escape(closing) for _, closing in self.fmt.think_tags)
        end = re.compile(rf"(?:\s*(?:{closings}))?").match(text, found.end, region.end).end()
        if end == found.end and self.renderer.specials is not None:
            mark = _CLOSING_MARK.match(text, found.end, region.end)
            closes = mark and not mark[1].startswith("<|tool") and "begin" not in mark[1] and "start" not in mark[1]
            if closes and self.renderer.specials.fullmatch(mark[1]):
                end = mark.end()
        return end + len(text[end : region.end]) - len(text[end : region.end].lstrip())

    def _label_observations(self, example: ChatSegmentation, regions: list[tuple[int, Region]], count: int) -> list[_Loss]:
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
            span = _find_content(text, message.content.strip(), cursor, limit) if message.content.strip() else None
            if span is not None:
                cursor = span.end
                if spoke and message.role != "system":
                    example.observations.append(span)
            elif message.content.strip() and _find_content(text, message.content.strip(), 0, len(text)) is None:
                losses.append(_Loss(message, "text", message.content.strip()))
        example.observations.sort()
        return losses


def _find_content(text: str, content: str, start: int, end: int) -> Span | None:
    """Finds the content of a message as it is, as a JSON string, or as JSON that the template has written anew."""
    for form in _written_forms(content):
        at = text.find(form, start, end)
        if at >= 0:
            return Span(at, at + len(form), SpanKind.OBSERVE)
    return None


def _written_forms(content: str) -> Iterator[str]:
    yield content
    yield json.dumps(content, ensure_ascii=False)[1:-1]
    yield json.dumps(content)[1:-1]
    value = parsed(content) if content[0] in "[{" else None
    if value is not None:
        yield json.dumps(value, ensure_ascii=False)
        yield json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        yield json.dumps(value, ensure_ascii=False, indent=2)
        yield json.dumps(value, ensure_ascii=False, indent=4)


def segment_chat(
    messages: Sequence[dict[str, Any]],
    fmt: ChatFormat,
    tokenizer: PreTrainedTokenizerBase,
    include_prefix: bool,
    tools: Any,
    unroll: str = "auto",
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

    Raises:
        InputError: The messages are malformed, or the template rejects or drops one. The error names the message.
    """
    check_unroll(unroll)
    normal = normalize_messages(messages)
    tools = normalize_tools(tools)
    first: _Loss | InputError | None = None
    own_text = ""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    for form in possible_forms(normal, template):
        conversation = _Conversation(Renderer(tokenizer, prepare(normal, form), form, tools), fmt, include_prefix)
        try:
            result, losses = _examples(conversation, unroll)
        except InputError as error:
            if first is None or (isinstance(first, InputError) and _in_own_words(error) > _in_own_words(first)):
                first = error
            continue
        if not losses:
            return _with_reports(result, normal, tools, form)
        if first is None or isinstance(first, InputError):
            first = losses[0]
            own_text = conversation.own_text(first.message)
    raise first if isinstance(first, InputError) else first.error(own_text)


def _in_own_words(error: InputError) -> bool:
    """Returns whether a template raised the error itself, by `raise_exception`."""
    return error.got.startswith("TemplateError: ")


def _examples(conversation: _Conversation, unroll: str) -> tuple[ChatSegmentation, list[_Loss]]:
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
    missing: list[_Loss] = []
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
