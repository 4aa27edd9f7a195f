"""Segments text whose lines carry prefixes, by a `Format`, in one pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sad.trajectories.formats import Format
from sad.trajectories.spans import Span, SpanKind

_BLANKS = re.compile(r"[^\S\r\n]*")
_CONTENT = re.compile(r"\S")
_KINDS = {"environment": SpanKind.NONE, "reason": SpanKind.REASON, "act": SpanKind.ACT}


class Unparsed(NamedTuple):
    """A place where the text did not fit the format: its line (counted from 1), the line's text, and why."""

    line: int
    text: str
    reason: str


@dataclass
class _Piece:
    """A line, or the part of one between two inline prefixes.

    `kind` is who wrote it by its prefix, None without a prefix; `begin` its first character after leading blanks,
    `content` the first after the prefix.
    """

    line: int
    begin: int
    content: int
    end: int
    kind: SpanKind | None = None


def _cuts(text: str, start: int, end: int, form: Format) -> Iterator[tuple[int, int]]:
    """The parts of the line [start, end): all of it, or cut before every inline prefix, blanks before a cut left out."""
    if not form.inline:
        yield start, end
        return
    patterns = [pattern for key, pattern in form.patterns.items() if key in _KINDS]
    at = sorted({m.start() for pattern in patterns for m in pattern.finditer(text, start, end)} - {start})
    for begin, stop in zip([start, *at], [*at, end]):
        yield begin, stop if stop == end else begin + len(text[begin:stop].rstrip())


def _pieces(text: str, form: Format) -> Iterator[_Piece]:
    observing = False  # inside an observation whose prefix was labelled
    line, start = 0, 0
    while start < len(text):
        line += 1
        end = text.find("\n", start) + 1 or len(text)
        for begin, stop in _cuts(text, start, end, form):
            begin = _BLANKS.match(text, begin, stop).end()
            piece = _Piece(line, begin, begin, stop)
            for key, kind in _KINDS.items():
                match = form.patterns[key].match(text, begin, stop) if key in form.patterns else None
                labelled = bool(match and match.groupdict().get("label"))
                if match and (labelled or not observing or kind is SpanKind.NONE):
                    piece.kind, piece.content = kind, match.end()
                    observing = kind is SpanKind.NONE and (labelled or observing)
                    break
            yield piece
        start = end


def _goes_on(form: Format, kind: SpanKind, following: SpanKind | None) -> bool:
    """Whether unprefixed lines between a prefix of `kind` and the next prefix belong to the model."""
    if form.unprefixed == "model":
        return kind is SpanKind.REASON or following is SpanKind.NONE
    return form.unprefixed == "thought" and kind is SpanKind.REASON and following is SpanKind.ACT


class _Reader:
    """Collects spans and what does not fit, prefix by prefix."""

    def __init__(self, text: str, form: Format, include_prefix: bool) -> None:
        self.text, self.form, self.include_prefix = text, form, include_prefix
        self.spans: list[Span] = []
        self.unparsed: list[Unparsed] = []

    def close(self, head: _Piece | None, rest: list[_Piece], following: SpanKind | None) -> None:
        """Takes a prefixed piece, the unprefixed ones (none blank) up to the next prefix, and that one's kind."""
        if head is None or head.kind is SpanKind.NONE:
            self._report_suspects(rest)
            return
        end = head.end
        if rest and _goes_on(self.form, head.kind, following):
            end = rest[-1].end
        elif rest and (self.form.unprefixed == "model" or _goes_on(self.form, head.kind, SpanKind.ACT)):
            after = "a thought without an action" if head.kind is SpanKind.REASON else "an action without an observation"
            self._report(rest[0], f"{len(rest)} unprefixed line(s) after {after}: unclear who wrote them, not labelled")
        else:
            self._report_suspects(rest)
        content = _CONTENT.search(self.text, head.content, end)
        if content is None:
            self._report(head, "a prefix with nothing after it: not labelled")
            return
        self.spans.append(Span(head.begin if self.include_prefix else content.start(), end, head.kind))

    def _report(self, piece: _Piece, reason: str) -> None:
        self.unparsed.append(Unparsed(piece.line, self.text[piece.begin : piece.end].rstrip(), reason))

    def _report_suspects(self, pieces: list[_Piece]) -> None:
        if suspect := self.form.patterns.get("suspect"):
            for piece in pieces:
                if suspect.match(self.text, piece.begin, piece.end):
                    self._report(piece, f"looks like a prefix, but not one of format {self.form.name!r}")


def segment_lines(text: str, form: Format, include_prefix: bool) -> tuple[list[Span], list[Unparsed]]:
    """Spans in the order of the text, and what did not fit. Linear in the text's length."""
    reader = _Reader(text, form, include_prefix)
    head: _Piece | None = None
    rest: list[_Piece] = []
    for piece in _pieces(text, form):
        if piece.kind is not None:
            reader.close(head, rest, piece.kind)
            head, rest = piece, []
        elif _CONTENT.search(text, piece.begin, piece.end):
            rest.append(piece)
    reader.close(head, rest, None)
    if not reader.spans:
        first = text.lstrip().split("\n", 1)[0].rstrip()
        reader.unparsed.append(Unparsed(1, first, f"no reasoning and no action found with format {form.name!r}"))
    reader.unparsed.sort(key=lambda item: item.line)
    return reader.spans, reader.unparsed
