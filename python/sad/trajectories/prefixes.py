"""Splits the text of a message by the line prefixes of the text formats, plain or in Markdown."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from sad.trajectories.formats import Format, joined_patterns
from sad.trajectories.lines import Unparsed
from sad.trajectories.pieces import Piece, line_at, lines_of
from sad.trajectories.spans import SpanKind

_DECORATION = re.compile(r"[ \t]*(?:#{1,6}[ \t]+)?(?:\*{1,2}|__)?")
_AFTER_PREFIX = re.compile(r"(?:\*{1,2}|__)?[ \t]*")
_DECORATED = re.compile(r"([^\n:*_#]{1,30})(?:\*{1,2}|__)[ \t]?:[ \t]*")  # the rest of `**Thought**:`
_HEADING = re.compile(r"([^\n:*_#]{1,30}?)[ \t]*(?:\*{1,2}|__)?[ \t]*[\r\n]")  # the rest of `### Thought`


def split_prefixes(text: str, piece: Piece, formats: tuple[Format, ...], unparsed: list[Unparsed]) -> list[Piece]:
    """Splits by the line prefixes of the text formats; returns [] without one.

    Text before the first prefix is a thought if an action, but not an answer, follows. Otherwise the text stays whole.
    """
    pieces = _pieces_by_prefix(text, piece, formats)
    first_own = next((number for number, new in enumerate(pieces) if new.kind is not SpanKind.NONE), len(pieces))
    pieces = pieces[first_own:]  # the environment cannot write before the model does
    if not pieces:
        _report_suspects(text, piece, formats, unparsed)
        return []
    first = pieces[0]
    if not text[piece.start : first.start].strip():
        return [first._replace(start=piece.start), *pieces[1:]]
    acts = [new for new in pieces if new.kind is SpanKind.ACT]
    if acts and not _is_answer(text, acts[0]):
        return [Piece(piece.start, first.start, SpanKind.REASON, piece.start), *pieces]
    if not acts:
        reason = "looks like a prefix, but does not begin the message, and no action follows: not split"
        unparsed.append(Unparsed(text.count("\n", 0, first.start) + 1, line_at(text, first.start), reason))
    return []


class _Patterns(NamedTuple):
    """The patterns of prefixes and their kinds, in the order in which they are tried; and one pattern for all of them."""

    each: list[tuple[re.Pattern[str], SpanKind]]
    joined: re.Pattern[str] | None

    def match(self, text: str, at: int, end: int) -> tuple[SpanKind, int] | None:
        """Returns the kind of the prefix at `at`, and the index after it; None without one."""
        if self.joined is not None:
            found = self.joined.match(text, at, end)
            return None if found is None else (self.each[int(found.lastgroup[1:])][1], found.end())
        matches = ((kind, pattern.match(text, at, end)) for pattern, kind in self.each)
        return next(((kind, found.end()) for kind, found in matches if found), None)


@lru_cache(maxsize=16)
def _patterns(formats: tuple[Format, ...]) -> _Patterns:
    kinds = (("environment", SpanKind.NONE), ("reason", SpanKind.REASON), ("act", SpanKind.ACT))
    each = [(found.patterns[key], kind) for key, kind in kinds for found in formats if key in found.patterns]
    return _Patterns(each, joined_patterns([pattern for pattern, _ in each]))


def _report_suspects(text: str, piece: Piece, formats: tuple[Format, ...], unparsed: list[Unparsed]) -> None:
    """Reports the first line that looks like a prefix of a format that is not among the text formats."""
    suspects = [found.patterns["suspect"].match for found in formats if "suspect" in found.patterns]
    for start, end in lines_of(text, piece):
        content = _DECORATION.match(text, start, end).end()
        for suspect in suspects:
            if suspect(text, content, end):
                number = text.count("\n", 0, start) + 1
                reason = "looks like a prefix of an unknown format: not split"
                unparsed.append(Unparsed(number, line_at(text, start), reason))
                return


def _is_answer(text: str, piece: Piece) -> bool:
    head = text[piece.start : piece.start + 40].lstrip(" \t*#_").lower()
    return head.startswith(("answer", "final answer"))


def _pieces_by_prefix(text: str, piece: Piece, formats: tuple[Format, ...]) -> list[Piece]:
    """Returns the pieces from the first prefix on; each ends at the next prefix or at the end of the text."""
    patterns = _patterns(formats)
    prefixes = [
        (start, found) for start, end in lines_of(text, piece) if (found := _prefix(text, start, end, patterns)) is not None
    ]
    ends = [start for start, _ in prefixes[1:]]
    return [Piece(start, end, *found) for (start, found), end in zip(prefixes, [*ends, piece.end])]


def _prefix(text: str, start: int, end: int, patterns: _Patterns) -> tuple[SpanKind, int] | None:
    """Returns the kind of the prefix of a line, plain or in Markdown, and the index after it; None without a prefix."""
    at = _DECORATION.match(text, start, end).end()
    if at >= end or text[at] in "\r\n":
        return None
    if found := patterns.match(text, at, end):
        return found[0], _AFTER_PREFIX.match(text, found[1], end).end()
    if at > start and text[at - 1] in "*_# \t":
        heading = text[start:at].lstrip().startswith("#")
        match = _DECORATED.match(text, at, end) or (_HEADING.match(text, at, end) if heading else None)
        if match:
            label = match[1].strip() + ":"
            for pattern, kind in patterns.each:
                if pattern.fullmatch(label):
                    return kind, match.end()
    return None
