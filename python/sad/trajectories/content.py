"""Splits what a model wrote in one message into thoughts, actions, and what the environment inserted.

The model wrote all of the message, apart from observations, so the pieces leave no gap: an action goes on to the next
thought, to an observation, or to the end of the message. The time is linear in the length of the content.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from sad.trajectories.code_blocks import split_code_block
from sad.trajectories.formats import ChatFormat, Format, get_format
from sad.trajectories.json_content import split_json
from sad.trajectories.lines import Unparsed
from sad.trajectories.pieces import Piece
from sad.trajectories.prefixes import split_prefixes
from sad.trajectories.spans import SpanKind
from sad.trajectories.tags import split_tags, split_think_tags


class SplitContent(NamedTuple):
    """The pieces of a message, without gaps, and what could not be split although it looks as if it could."""

    pieces: Sequence[Piece]
    unparsed: Sequence[Unparsed]


def split_content(text: str, fmt: ChatFormat, *, calls_follow: bool, thoughts_apart: bool) -> SplitContent:
    """Splits the visible text of an assistant message.

    Args:
        text: The content of the message.
        fmt: The tags and the line formats.
        calls_follow: Whether tool calls follow in the same message. Text of unknown kind then counts as reasoning.
        thoughts_apart: Whether the message states its thoughts outside the content. Think tags are then text.

    Returns:
        Pieces that cover the text without gaps, none for blank text.
    """
    formats = tuple(found for found in map(get_format, fmt.text_formats) if isinstance(found, Format))
    split = _split_short if len(text) <= _SHORT else _split
    return split(text, fmt, formats, calls_follow, thoughts_apart)


_SHORT = 2000  # characters up to which results are kept: a conversation of several examples splits its messages again


def _split(
    text: str, fmt: ChatFormat, formats: tuple[Format, ...], calls_follow: bool, thoughts_apart: bool
) -> SplitContent:
    unparsed: list[Unparsed] = []
    pieces = [Piece(0, len(text), None, 0)] if text.strip() else []
    if not thoughts_apart:
        pieces = [new for piece in pieces for new in split_think_tags(text, piece, fmt)]
    split = []
    for piece in pieces:
        split += split_tags(text, piece, fmt, unparsed) if piece.kind is None else [piece]
    if not any(piece.kind is SpanKind.ACT for piece in split):
        split = [new for piece in split for new in _split_unknown(text, piece, formats, calls_follow, unparsed)]
    return SplitContent(tuple(_settle(text, split, calls_follow)), tuple(sorted(unparsed)))


_split_short = lru_cache(maxsize=4096)(_split)


def _settle(text: str, pieces: list[Piece], calls_follow: bool) -> list[Piece]:
    """Gives every piece a kind: blanks belong to the piece before them, other text is a thought if an action follows."""
    acts = [number for number, piece in enumerate(pieces) if piece.kind is SpanKind.ACT]
    last_act = acts[-1] if acts else -1
    settled: list[Piece] = []
    start = 0
    for number, piece in enumerate(pieces):
        if not text[piece.start : piece.end].strip():
            if settled:
                settled[-1] = settled[-1]._replace(end=piece.end)
                start = piece.end
            continue
        kind = piece.kind
        if kind is None:
            kind = SpanKind.REASON if calls_follow or number < last_act else SpanKind.ACT
        opened = piece.start if piece.kind is SpanKind.NONE else start
        if settled and settled[-1].end == opened and text[opened].isspace():  # blanks after a closing tag belong to it
            opened += len(text[opened : piece.end]) - len(text[opened : piece.end].lstrip())
            settled[-1] = settled[-1]._replace(end=opened)
        if settled and settled[-1].kind is kind and piece.kind is None:
            settled[-1] = settled[-1]._replace(end=piece.end)
        else:
            same = opened == piece.start and kind is piece.kind
            settled.append(piece if same else Piece(opened, piece.end, kind, max(piece.content, opened)))
        start = piece.end
    return settled


def _split_unknown(
    text: str, piece: Piece, formats: tuple[Format, ...], calls_follow: bool, unparsed: list[Unparsed]
) -> list[Piece]:
    """Splits text without tags of actions: a JSON object, line prefixes, a code block at the end."""
    if piece.kind is not None or not text[piece.start : piece.end].strip():
        return [piece]
    pieces = split_prefixes(text, piece, formats, unparsed) or [piece]
    if calls_follow or any(new.kind is SpanKind.ACT for new in pieces) or pieces[-1].kind is SpanKind.NONE:
        return pieces
    last = pieces[-1]
    return [*pieces[:-1], *((last.kind is None and split_json(text, last)) or split_code_block(text, last, unparsed))]
