"""Segments chat messages: renders them with a tokenizer's chat template and finds the assistant's text in the result.

The whole conversation is rendered once, because templates treat a message by its position (some drop the reasoning of
earlier turns). An assistant turn is the text between the header and the end mark of the template; a probe conversation
reveals both. Inside the turn, the parts of the message are searched in order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sad.errors import InputError
from sad.trajectories.formats import ChatFormat, Format, get_format
from sad.trajectories.lines import LineSpans, Unparsed, segment_lines
from sad.trajectories.messages import Part, check_messages, content_text, message_parts
from sad.trajectories.spans import Span, SpanKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BLANKS = re.compile(r"\s*")
_REST_OF_LINE = re.compile(r"[^\S\n]*\n?")
_INSTRUCTING_ROLES = ("system", "developer")


class _TurnMarks(NamedTuple):
    """The text that a template writes before and after an assistant turn; empty if unknown."""

    header: str
    end: str


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: Any, **options: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        remedy = "Set tokenizer.chat_template, or render the messages yourself and pass text."
        raise InputError("tokenizer", "a tokenizer with a chat template", "one without", remedy)
    try:
        return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)
    except Exception as error:  # a template can raise any exception: jinja2's errors, KeyError, TypeError
        remedy = "Check the roles, their order, and that the template knows the messages' keys."
        got = f"{type(error).__name__}: {error}"
        raise InputError("messages", "messages that the tokenizer's chat template accepts", got, remedy) from error


def _common_prefix(a: str, b: str) -> str:
    length = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return a[:length]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Returns the special tokens that can end a turn. Some templates write the BOS before the next turn: not included."""
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return [token for token in special if token != tokenizer.bos_token or token == tokenizer.eos_token]


def _probe_turn_marks(tokenizer: PreTrainedTokenizerBase) -> _TurnMarks:
    """Finds the header and the end mark of an assistant turn from two rendered probe conversations."""
    ask, reply = {"role": "user", "content": "sadprobeuser"}, {"role": "assistant", "content": "sadprobereply"}
    try:
        asked = _render(tokenizer, [ask], None).rpartition("sadprobeuser")[2]
        prompted = _render(tokenizer, [ask], None, add_generation_prompt=True).rpartition("sadprobeuser")[2]
        rendered = _render(tokenizer, [ask, reply, ask, reply], None)
        _, before, between, _, after = re.split("sadprobeuser|sadprobereply", rendered)
    except (InputError, ValueError):  # the template rejects or changes the probe
        return _TurnMarks("", "")
    header = before.removeprefix(asked)
    if prompted.removeprefix(asked):  # a generation prompt can continue into the turn (`<think>`)
        header = _common_prefix(header, prompted.removeprefix(asked))
    end = _common_prefix(between, after).strip()
    if not end:  # the template writes no end mark after the last turn: the first special token after the other turn
        end = min((token for token in _special_tokens(tokenizer) if token in between), key=between.index, default="")
    return _TurnMarks(header if header.strip() else "", end)


class _FoundPart(NamedTuple):
    """A part and its range of characters in the rendered text."""

    part: Part
    start: int
    end: int


def _find_parts(text: str, parts: list[Part], begin: int, limit: int, where: str) -> list[_FoundPart]:
    """Finds the parts in text[begin:limit], in order.

    Raises:
        InputError: The rendered text does not contain a part as it was written.
    """
    found = []
    for part in parts:
        start = None
        for fragment in part.fragments:
            at = text.find(fragment, begin, limit)
            if at < 0:
                shown = fragment if len(fragment) <= 60 else fragment[:60] + "..."
                remedy = (
                    "The chat template drops or rewrites it; some templates drop the reasoning of earlier turns. Set a "
                    "tokenizer.chat_template that keeps it."
                )
                raise InputError(where, f"its {part.role} in the rendered text", f"a turn without {shown!r}", remedy)
            start, begin = (at if start is None else start), at + len(fragment)
        found.append(_FoundPart(part, start, begin))
    return found


@dataclass
class _Turn:
    """Labels one assistant turn and leaves no gap between its parts.

    Args:
        text: The rendered conversation.
        fmt: The format of the messages.
        begin: Index from which the turn can start.
        limit: Index before which the turn ends.
        has_header: Whether the template's header was found, so that the turn starts at `begin`.
        end_mark: The usual end mark of the template, or "".
        marks: The end mark and all special tokens that can end a turn.
        include_prefix: Whether spans include the tags before reasoning and calls.
        spans: Filled by `label`.
        observations: Filled by `label`, with what visible text marks as an observation inside the turn.
        unparsed: Filled by `label`.
    """

    text: str
    fmt: ChatFormat
    begin: int
    limit: int
    has_header: bool
    end_mark: str
    marks: frozenset[str]
    include_prefix: bool
    spans: list[Span] = field(default_factory=list)
    observations: list[Span] = field(default_factory=list)
    unparsed: list[Unparsed] = field(default_factory=list)

    def label(self, parts: list[_FoundPart]) -> int:
        """Fills `spans`, `observations` and `unparsed`; returns the index at which the turn ends."""
        after = self.begin
        for number, found in enumerate(parts):
            start = self._start(found, after, first=number == 0)
            after = self._end(found, last=number == len(parts) - 1)
            if found.part.role == "text" and self._label_by_prefixes(found, after):
                continue
            calls_follow = any(later.part.role == "calls" for later in parts[number + 1 :])
            thought = found.part.role == "reasoning" or (found.part.role == "text" and calls_follow)
            self.spans.append(Span(start, after, SpanKind.REASON if thought else SpanKind.ACT))
        return after

    def _start(self, found: _FoundPart, after: int, first: bool) -> int:
        """Returns the start of a part's span; the previous part ends at `after`."""
        lead = self.text[after : found.start]
        if found.part.role == "reasoning":
            openings = "|".join(re.escape(opening) for opening, _ in self.fmt.think_tags)
            tag = re.search(rf"(?:{openings})\s*\Z", lead)
        elif found.part.role == "calls":
            tag = re.search(rf"(?:{'|'.join(map(re.escape, self.fmt.call_openers))})\s*", lead)
        else:  # the template, not the model, writes text before the first visible text, such as an empty think block
            return found.start if first or not self.include_prefix else after
        if tag:
            return after + (tag.start() if self.include_prefix else tag.end())
        in_turn = self.has_header or not first  # all of `lead` is inside this turn
        return after + len(lead) - len(lead.lstrip()) if in_turn and self.include_prefix else found.start

    def _end(self, found: _FoundPart, last: bool) -> int:
        """Returns the end of a part's span, after a closing think tag and blanks, or after the end of the turn."""
        closings = "|".join(re.escape(closing) for _, closing in self.fmt.think_tags)
        closed = re.compile(rf"(?:\s*(?:{closings}))?").match(self.text, found.end).end()
        if not last:
            return _BLANKS.match(self.text, closed).end()
        return self._end_of_turn(closed, search=found.part.role == "calls")

    def _end_of_turn(self, after: int, search: bool) -> int:
        """Returns the index after the end mark of the turn.

        A turn can end with a mark other than the usual one (tool calls often have their own), or with several special
        tokens. Without a mark the turn ends with its line.

        Args:
            after: Index after the last known character of the turn.
            search: Whether to search for the mark. For tool calls the text between `after` and the mark is not known. False
                expects the mark at `after`.
        """
        marks = "|".join(map(re.escape, sorted(self.marks, key=len, reverse=True)))
        at = _BLANKS.match(self.text, after, self.limit).end()
        pattern = re.compile(marks)
        first = (pattern.search if search else pattern.match)(self.text, at, self.limit) if marks else None
        if first is None:
            return _REST_OF_LINE.match(self.text, after).end()
        run = re.compile(rf"(?:(?:{marks})\s*)+").match(self.text, first.start(), self.limit).group()
        usual = run.find(self.end_mark) if self.end_mark else -1
        return first.start() + usual + len(self.end_mark) if usual >= 0 else first.end()

    def _label_by_prefixes(self, found: _FoundPart, end: int) -> bool:
        """Labels visible text that begins with a prefix of a line format; returns whether it does."""
        visible = self.text[found.start : found.end]
        for fmt in map(get_format, self.fmt.text_formats):
            if not isinstance(fmt, Format) or not _begins_with_prefix(visible, fmt):
                continue
            inside = segment_lines(visible, fmt, self.include_prefix)
            for span in inside.spans:
                stop = end if span.end == len(visible) else span.end + found.start
                self.spans.append(Span(span.start + found.start, stop, span.kind))
            for start, stop, kind in inside.observations:
                self.observations.append(Span(start + found.start, stop + found.start, kind))
            line = self.text.count("\n", 0, found.start)
            self.unparsed += [item._replace(line=item.line + line) for item in inside.unparsed]
            return True
        return False


def _begins_with_prefix(text: str, fmt: Format) -> bool:
    return any(fmt.patterns[key].match(text) for key in ("reason", "act"))


def segment_chat(
    messages: Sequence[dict[str, Any]],
    fmt: ChatFormat,
    tokenizer: PreTrainedTokenizerBase,
    include_prefix: bool,
    tools: Sequence[dict[str, Any]] | None,
) -> tuple[str, LineSpans]:
    """Returns the rendered text, its spans and observations in order, and the assistant messages without content.

    An observation is the content of a message that follows a turn of the assistant, except of a system message.

    Raises:
        InputError: The messages are malformed, or the template rejects, drops or rewrites one.
    """
    messages = check_messages(messages)
    text = _render(tokenizer, messages, tools)
    header, end_mark = _probe_turn_marks(tokenizer)
    marks = frozenset({end_mark, *_special_tokens(tokenizer)} - {""})
    spans: list[Span] = []
    observations: list[Span] = []
    unparsed: list[Unparsed] = []
    cursor = 0
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if message["role"] != "assistant":
            if written := _find_content(text, content_text(message).strip(), cursor, header):
                if spans and message["role"] not in _INSTRUCTING_ROLES:
                    observations.append(Span(*written, SpanKind.OBSERVE))
                cursor = written[1]
            continue
        parts = message_parts(message, fmt, where)
        if not parts:
            unparsed.append(Unparsed(text.count("\n", 0, cursor) + 1, "", f"{where} of the assistant is empty"))
        at = text.find(header, cursor)
        begin = at + len(header) if at >= 0 else cursor
        next_header = text.find(header, begin) if header else -1
        limit = next_header if next_header >= 0 else len(text)
        mark = text.find(end_mark, begin, limit) if end_mark else -1
        found = _find_parts(text, parts, begin, mark if mark >= 0 else limit, where)
        turn = _Turn(text, fmt, begin, limit, bool(header) and at >= 0, end_mark, marks, include_prefix)
        cursor = turn.label(found)
        spans += turn.spans
        observations += turn.observations
        unparsed += turn.unparsed
    return text, LineSpans(spans, _disjoint(observations, spans), unparsed)


def _find_content(text: str, content: str, cursor: int, header: str) -> tuple[int, int] | None:
    """Returns the range of a message's content that begins between `cursor` and the next turn of the assistant.

    Templates write the content of a tool message as it is, or as a JSON string. None if it is empty, dropped or rewritten.
    """
    if not content:
        return None
    next_turn = text.find(header, cursor) if header else -1
    for written in (content, *(json.dumps(content, ensure_ascii=ascii)[1:-1] for ascii in (False, True))):
        at = text.find(written, cursor)
        if 0 <= at and (next_turn < 0 or at <= next_turn):  # the content may contain the header
            return at, at + len(written)
    return None


def _disjoint(observations: list[Span], spans: list[Span]) -> list[Span]:
    """Returns the observations that overlap neither an earlier one nor a span of the model.

    Without the template's header, a content that the template drops can be found in a later turn.
    """
    kept: list[Span] = []
    later, end = iter(spans), 0
    span = next(later, None)
    for found in sorted(observations):
        while span is not None and span.end <= found.start:
            span = next(later, None)
        if found.start >= end and (span is None or span.start >= found.end):
            kept.append(found)
            end = found.end
    return kept
