"""Pieces of a message: ranges of its text with a kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sad.trajectories.spans import Span, SpanKind


class Piece(NamedTuple):
    """A piece of a message.

    Args:
        start: First character.
        end: Index after the last character.
        kind: Its kind: NONE if the environment wrote it; None while it is not known.
        content: First character after the tag or prefix that opens it.
    """

    start: int
    end: int
    kind: SpanKind | None
    content: int


def spans_of(pieces: Sequence[Piece], include_prefix: bool, at: int = 0) -> list[Span]:
    """Returns the pieces that the model wrote as spans of a text in which their own text starts at `at`."""
    starts = [piece.start if include_prefix else min(piece.content, piece.end) for piece in pieces]
    return [Span(s + at, piece.end + at, piece.kind) for s, piece in zip(starts, pieces) if piece.kind and s < piece.end]


def begins_line(text: str, at: int, after: int) -> bool:
    """Returns whether only blanks stand between `at` and the start of its line, or `after`, or whether a tag ends there."""
    window = max(after, at - 80)
    lead = text[window:at].rstrip(" \t")
    return lead.endswith(("\n", ">")) or (not lead and window == after)


def lines_of(text: str, piece: Piece) -> Iterator[tuple[int, int]]:
    start = piece.start
    while start < piece.end:
        end = text.find("\n", start, piece.end) + 1 or piece.end
        yield start, end
        start = end


def line_at(text: str, at: int) -> str:
    start = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at)
    return text[start : end if end >= 0 else len(text)].strip()[:200]
