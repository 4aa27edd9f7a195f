"""Segments text by the line prefixes of a `Format`, in one pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sad.trajectories.formats import Format
from sad.trajectories.spans import Span, SpanKind

_BLANKS = re.compile(r"[^\S\r\n]*")
_BLANK_LINES = re.compile(r"(?:[^\S\n]*\n)+")
_CONTENT = re.compile(r"\S")
_KINDS = {"environment": SpanKind.NONE, "reason": SpanKind.REASON, "act": SpanKind.ACT}


class Unparsed(NamedTuple):
    """A place where the text does not fit its format: the line number (from 1), the text of the line, and the reason."""

    line: int
    text: str
    reason: str


class LineSpans(NamedTuple):
    """What the model wrote, the observations, and the lines that do not fit the format, in the order of the text."""

    spans: list[Span]
    observations: list[Span]
    unparsed: list[Unparsed]


@dataclass(slots=True)
class _Piece:
    """A line, or the part of a line between two inline prefixes.

    Args:
        line: Line number, from 1.
        begin: Index of the first character after leading blanks.
        content: Index of the first character after the prefix; `begin` without a prefix.
        end: Index after the last character.
        kind: The kind of the prefix; None without a prefix.
    """

    line: int
    begin: int
    content: int
    end: int
    kind: SpanKind | None = None


def _split_line(text: str, start: int, end: int, fmt: Format) -> Iterator[tuple[int, int]]:
    """Yields the line [start, end) whole, or for an inline format its parts, without the blanks before a prefix."""
    if not fmt.inline:
        yield start, end
        return
    found = {m.start() for key in _KINDS if key in fmt.patterns for m in fmt.patterns[key].finditer(text, start, end)}
    at = sorted(found - {start})
    for begin, stop in zip([start, *at], [*at, end]):
        yield begin, stop if stop == end else begin + len(text[begin:stop].rstrip())


def _pieces(text: str, fmt: Format) -> Iterator[_Piece]:
    """Yields the pieces of a text in order, each with the kind of its prefix."""
    in_labelled_observation = False
    line, start = 0, 0
    prefix = fmt.patterns.get("any")
    find = prefix and (prefix.search if fmt.inline else prefix.match)
    while start < len(text):
        if blank := _BLANK_LINES.match(text, start):  # in one step: a file can consist of them
            line += text.count("\n", start, blank.end())
            start = blank.end()
            continue
        line += 1
        end = text.find("\n", start) + 1 or len(text)
        if find:
            begin = _BLANKS.match(text, start, end).end()
            if not find(text, start if fmt.inline else begin, end):
                yield _Piece(line, begin, begin, end)
                start = end
                continue
        for begin, stop in _split_line(text, start, end, fmt):
            begin = _BLANKS.match(text, begin, stop).end()
            piece = _Piece(line, begin, begin, stop)
            for key, kind in _KINDS.items():
                match = fmt.patterns[key].match(text, begin, stop) if key in fmt.patterns else None
                labelled = bool(match and match.groupdict().get("label"))
                if match and (labelled or not in_labelled_observation or kind is SpanKind.NONE):
                    piece.kind, piece.content = kind, match.end()
                    in_labelled_observation = kind is SpanKind.NONE and (labelled or in_labelled_observation)
                    break
            yield piece
        start = end


def _continues(fmt: Format, kind: SpanKind, next_kind: SpanKind | None) -> bool:
    """Returns whether a span of `kind` includes the unprefixed lines up to the next prefix, which is of `next_kind`."""
    if fmt.unprefixed == "model":
        return kind is SpanKind.REASON or next_kind is SpanKind.NONE
    return fmt.unprefixed == "thought" and kind is SpanKind.REASON and next_kind is SpanKind.ACT


class _SpanBuilder:
    """Collects spans and unparsed lines, one prefix at a time."""

    def __init__(self, text: str, fmt: Format, include_prefix: bool) -> None:
        self.text, self.fmt, self.include_prefix = text, fmt, include_prefix
        self.spans: list[Span] = []
        self.observations: list[Span] = []
        self.unparsed: list[Unparsed] = []

    def add(self, head: _Piece | None, rest: list[_Piece], next_kind: SpanKind | None) -> None:
        """Adds the span of a prefixed piece, if the model wrote it, and the observation that is in it or follows it.

        Args:
            head: The piece with the prefix; None before the first prefix of the text.
            rest: The non-blank pieces between `head` and the next prefix.
            next_kind: The kind of the next prefix; None at the end of the text.
        """
        if head is None or head.kind is SpanKind.NONE:
            self._report_suspects(rest)
            if head is not None:
                self._observe([head, *rest])
            return
        end, answer = head.end, []
        if rest and _continues(self.fmt, head.kind, next_kind):
            end = rest[-1].end
        elif rest and (self.fmt.unprefixed == "model" or _continues(self.fmt, head.kind, SpanKind.ACT)):
            after = "a thought without an action" if head.kind is SpanKind.REASON else "an action without an observation"
            self._report(rest[0], f"{len(rest)} unprefixed line(s) after {after}: author unknown, not labelled")
        else:
            self._report_suspects(rest)
            answer = rest
        content = _CONTENT.search(self.text, head.content, end)
        if content is None:
            self._report(head, "a prefix with nothing after it: not labelled")
        else:
            self.spans.append(Span(head.begin if self.include_prefix else content.start(), end, head.kind))
        self._observe(answer)

    def _observe(self, pieces: list[_Piece]) -> None:
        """Adds the observations in pieces that the environment wrote. What precedes the model's first span is the prompt.

        A suspect line, whose author is unclear, and a line of the context, such as a question, end an observation. If lines
        without a prefix belong to the author of the line before, they belong to the context too.
        """
        run: list[_Piece] = []
        for piece in pieces if self.spans else []:
            context = self._matches("context", piece)
            if context or (piece.kind is None and self._matches("suspect", piece)):
                self._add_observation(run)
                run = []
                if context and self.fmt.unprefixed == "model":
                    return
            else:
                run.append(piece)
        self._add_observation(run)

    def _add_observation(self, run: list[_Piece]) -> None:
        if run and (content := _CONTENT.search(self.text, run[0].content, run[-1].end)):
            start = run[0].begin if self.include_prefix else content.start()
            self.observations.append(Span(start, run[-1].end, SpanKind.OBSERVE))

    def _matches(self, key: str, piece: _Piece) -> bool:
        pattern = self.fmt.patterns.get(key)
        return pattern is not None and pattern.match(self.text, piece.begin, piece.end) is not None

    def _report(self, piece: _Piece, reason: str) -> None:
        self.unparsed.append(Unparsed(piece.line, self.text[piece.begin : piece.end].rstrip(), reason))

    def _report_suspects(self, pieces: list[_Piece]) -> None:
        for piece in pieces if "suspect" in self.fmt.patterns else ():
            if self._matches("suspect", piece):
                self._report(piece, f"looks like a prefix, but not one of format {self.fmt.name!r}")


def segment_lines(text: str, fmt: Format, include_prefix: bool) -> LineSpans:
    """Returns the spans of a text, the observations in it, and the lines that do not fit the format.

    The time is linear in the length of the text.
    """
    builder = _SpanBuilder(text, fmt, include_prefix)
    head: _Piece | None = None
    rest: list[_Piece] = []
    for piece in _pieces(text, fmt):
        if piece.kind is not None:
            builder.add(head, rest, piece.kind)
            head, rest = piece, []
        elif piece.begin < piece.end and (text[piece.begin] != "\r" or _CONTENT.search(text, piece.begin, piece.end)):
            rest.append(piece)
    builder.add(head, rest, None)
    if not builder.spans:
        first = text.lstrip().split("\n", 1)[0].rstrip()
        builder.unparsed.append(Unparsed(1, first, f"no reasoning and no action found with format {fmt.name!r}"))
    builder.unparsed.sort(key=lambda item: item.line)
    return LineSpans(builder.spans, builder.observations, builder.unparsed)
