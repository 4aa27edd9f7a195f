"""Segments text that a chat template has rendered already, by the template's marks: ChatML, Llama 3, harmony and others.

The text is labelled as it is, so its marks must be special tokens of the student's tokenizer.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from sad.errors import InputError
from sad.trajectories.content import split_content
from sad.trajectories.conversation import ChatSegmentation
from sad.trajectories.dialects import DIALECTS, Dialect, find_dialect
from sad.trajectories.formats import ChatFormat
from sad.trajectories.lines import Unparsed
from sad.trajectories.pieces import Piece, spans_of
from sad.trajectories.spans import Span, SpanKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_LINE_END = re.compile("\n")


class _Turn(NamedTuple):
    """A turn of the assistant: where its header starts, its content, and the index after its end mark."""

    header: int
    start: int
    content_end: int
    end: int
    thought: bool


class _Marks:
    """The places of all marks and line ends of a text, found in one pass each, so that the time is linear."""

    def __init__(self, text: str, dialect: Dialect) -> None:
        self.lines = [found.start() for found in _LINE_END.finditer(text)]
        self.headers = list(dialect.assistant.finditer(text))
        self.turns = [found.start() for found in dialect.turn.finditer(text)]
        self.ends = [found.span() for found in dialect.end.finditer(text)]
        self.length = len(text)

    def line_of(self, at: int) -> int:
        """Returns the number of line ends before `at`."""
        return bisect_left(self.lines, at)

    def end_of_turn(self, start: int) -> tuple[int, int]:
        """Returns the first end mark from `start` on, or an empty range where the next turn or the end of the text is."""
        turn, end = bisect_left(self.turns, start), bisect_left(self.ends, (start, start))
        following = self.turns[turn] if turn < len(self.turns) else self.length
        if end < len(self.ends) and self.ends[end][0] < following:
            return self.ends[end]
        return following, following


def _turns(dialect: Dialect, marks: _Marks) -> Iterator[_Turn]:
    after = 0
    for header in marks.headers:
        if header.start() < after:
            continue
        content_end, after = marks.end_of_turn(header.end())
        head = header.groupdict().get("head")
        # harmony: the model writes all of the message but `<|start|>assistant`
        start = header.end() if head is None else header.start("head")
        yield _Turn(header.start(), start, content_end, after, head is not None and _is_thought(head))


def _is_thought(head: str) -> bool:
    """Returns whether a header of harmony opens a thought: an analysis, or a comment before a call, to no tool."""
    return ("analysis" in head or "commentary" in head) and "to=" not in head


def segment_rendered(
    text: str,
    fmt: ChatFormat,
    tokenizer: PreTrainedTokenizerBase | None,
    include_prefix: bool,
    prompt_chars: int = 0,
) -> ChatSegmentation:
    """Labels the assistant's turns in a rendered conversation.

    Args:
        text: The text with the marks of a chat template.
        fmt: The tags and line formats.
        tokenizer: The student's tokenizer; None checks no marks.
        include_prefix: Whether spans include tags and prefixes.
        prompt_chars: Number of characters at the start that the student does not learn.

    Raises:
        InputError: The text has no marks, or the marks are not special tokens of the tokenizer.
    """
    dialect = find_dialect(text)
    if dialect is None:
        known = ", ".join(dialect.name for dialect in DIALECTS)
        remedy = "Pass messages, or the name of the format of the text."
        raise InputError("text", f"text with the marks of a chat template ({known})", "text without them", remedy)
    _check_tokens(tokenizer, dialect)
    found = ChatSegmentation(text, starts=[0])
    after = None
    marks = _Marks(text, dialect)
    for turn in _turns(dialect, marks):
        if after is not None:
            found.observations += _answers(text, after, turn.header, dialect, marks)
        if turn.end > prompt_chars:
            _label(found, turn._replace(start=max(turn.start, prompt_chars)), dialect, fmt, include_prefix, marks)
            after = turn.end
    if not found.spans:
        found.unparsed.append(Unparsed(1, "", f"no assistant turn with text found by the marks of {dialect.name}"))
    return found


def _answers(text: str, start: int, end: int, dialect: Dialect, marks: _Marks) -> Iterator[Span]:
    """Yields the content of the turns in text[start:end], which follow a turn of the assistant."""
    for header in dialect.turn.finditer(text, start, end):
        limit = min(end, marks.end_of_turn(header.end())[0])
        head = dialect.head_end.search(text, header.end(), limit)
        begin = head.end() if head else header.end()
        content = text[begin:limit]
        lead = len(content) - len(content.lstrip())
        if content.strip():
            yield Span(begin + lead, begin + len(content.rstrip()), SpanKind.OBSERVE)


def _check_tokens(tokenizer: PreTrainedTokenizerBase | None, dialect: Dialect) -> None:
    if tokenizer is None:
        return
    known = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    missing = [token for token in dialect.tokens if token not in known]
    if missing:
        got = f"a tokenizer without {', '.join(map(repr, missing))}"
        remedy = "Use the tokenizer that the text was rendered for, or pass messages, which its chat template renders."
        raise InputError("text", f"a tokenizer with the marks of {dialect.name}", got, remedy)


@lru_cache(maxsize=16)
def _empty_thought(fmt: ChatFormat) -> re.Pattern[str]:
    """Matches a thought without text that opens a turn, or its closing tag alone: the generation prompt holds it."""
    pairs = "|".join(f"(?:{re.escape(opening)}\\s*)?{re.escape(closing)}" for opening, closing in fmt.think_tags)
    return re.compile(rf"(?:(?:{pairs})\s*)?")


def _label(
    found: ChatSegmentation, turn: _Turn, dialect: Dialect, fmt: ChatFormat, include_prefix: bool, marks: _Marks
) -> None:
    text = found.text
    content = text[turn.start : turn.content_end]
    lead = len(content) - len(content.lstrip())
    if dialect.name == "harmony" or not content.strip():
        if turn.end > turn.start and content.strip():
            found.spans.append(Span(turn.start, turn.end, SpanKind.REASON if turn.thought else SpanKind.ACT))
        return
    start = turn.start + lead
    start += _empty_thought(fmt).match(text[start : turn.content_end]).end()
    calls = min((at for mark in dialect.calls if (at := text.find(mark, start, turn.content_end)) >= 0), default=-1)
    stop = calls if calls >= 0 else turn.content_end
    split = split_content(text[start:stop], fmt, calls_follow=calls >= 0, thoughts_apart=False)
    pieces = list(split.pieces)
    if calls >= 0:
        pieces.append(Piece(calls - start, turn.content_end - start, SpanKind.ACT, calls - start))
    if pieces and pieces[-1].kind is not SpanKind.NONE:
        pieces[-1] = pieces[-1]._replace(end=turn.end - start)
    found.spans += spans_of(pieces, include_prefix, start)
    inserted = [piece for piece in pieces if piece.kind is SpanKind.NONE]
    found.observations += [Span(piece.start + start, piece.end + start, SpanKind.OBSERVE) for piece in inserted]
    line = marks.line_of(start)
    found.unparsed += [item._replace(line=item.line + line) for item in split.unparsed]
