"""Splits the text of a message by tags: think blocks, and paired tags of thoughts, actions and the environment."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from sad.trajectories.code_blocks import code_blocks
from sad.trajectories.formats import ChatFormat
from sad.trajectories.lines import Unparsed
from sad.trajectories.pieces import Piece, begins_line, line_at
from sad.trajectories.spans import SpanKind

_TAG = re.compile(r"<(?P<close>/?)(?P<name>[A-Za-z_][\w.-]{0,60})(?P<rest>=[^<>\n]{0,200}|\s[^<>\n]{0,400})?>")
_REPORTS = 5  # per message


def split_think_tags(text: str, piece: Piece, fmt: ChatFormat) -> Iterator[Piece]:
    """Yields think blocks as reasoning. A block counts if one opens the content, or if a closing tag has no opening one.

    A missing opening tag stands at the content's edge, because a template can write it; a missing closing tag too, because
    the output was cut.
    """
    begin = len(text) - len(text.lstrip())
    for opening, closing in fmt.think_tags:
        first, closed = text.find(opening), text.find(closing)
        opens = text.startswith(opening, begin)
        orphan = closed >= 0 and (first < 0 or closed < first) and text[closed - 1 : closed] in ("\n", " ", ".", "")
        if not opens and not (orphan or (closed >= 0 and first < 0)):
            continue
        cursor = 0
        if not opens:
            yield Piece(0, closed + len(closing), SpanKind.REASON, 0)
            cursor = closed + len(closing)
        while (at := _next_block(text, opening, cursor)) >= 0:
            end = text.find(closing, at)
            stop = end + len(closing) if end >= 0 else len(text)
            yield Piece(cursor, at, None, cursor)
            yield Piece(at, stop, SpanKind.REASON, at + len(opening))
            cursor = stop
        yield Piece(cursor, len(text), None, cursor)
        return
    yield piece


def _next_block(text: str, opening: str, cursor: int) -> int:
    """Returns the next opening tag at the start of a line or right after another tag; -1 without one."""
    at = text.find(opening, cursor)
    while at >= 0 and not begins_line(text, at, cursor):
        at = text.find(opening, at + len(opening))
    return at


class _Tag(NamedTuple):
    name: str
    start: int
    end: int


def _paired_tags(text: str, piece: Piece) -> Iterator[tuple[_Tag, _Tag]]:
    """Yields the outermost pairs of tags whose opening tag begins a line or follows a tag."""
    tags, closing = [], []
    closers: dict[str, list[int]] = {}
    for number, tag in enumerate(_TAG.finditer(text, piece.start, piece.end)):
        close, name = tag.group("close", "name")
        tags.append(_Tag(name.lower(), *tag.span()))
        closing.append(close)
        if close:
            closers.setdefault(tags[-1].name, []).append(number)
    for numbers in closers.values():
        numbers.reverse()
    after = piece.start
    for number, tag in enumerate(tags):
        if closing[number] or tag.start < after:
            continue
        waiting = closers.get(tag.name, [])
        while waiting and waiting[-1] <= number:
            waiting.pop()
        if not waiting or not begins_line(text, tag.start, after):
            continue
        closer = tags[waiting[-1]]
        yield tag, closer
        after = closer.end


@lru_cache(maxsize=16)
def _kinds_of_tags(fmt: ChatFormat) -> dict[str, SpanKind]:
    return {
        **dict.fromkeys(fmt.action_tags, SpanKind.ACT),
        **dict.fromkeys(fmt.reason_tags, SpanKind.REASON),
        **dict.fromkeys(fmt.environment_tags, SpanKind.NONE),
    }


def split_tags(text: str, piece: Piece, fmt: ChatFormat, unparsed: list[Unparsed]) -> list[Piece]:
    """Splits by paired tags: of the environment, of thoughts and of actions. Reports pairs of unknown name."""
    if text.find("<", piece.start, piece.end) < 0:
        return [piece]
    pieces: list[Piece] = []
    reported: set[str] = set()
    cursor = piece.start
    fences = code_blocks(text, piece)
    begins = [start for start, _ in fences]
    kinds = _kinds_of_tags(fmt)
    for opener, closer in _paired_tags(text, piece):
        block = bisect_right(begins, opener.start) - 1
        in_code = block >= 0 and opener.start < fences[block][1]
        kind = kinds.get(opener.name)
        if kind is not None and not (in_code and kind is not SpanKind.NONE):
            pieces.append(Piece(cursor, opener.start, None, cursor))
            pieces.append(Piece(opener.start, closer.end, kind, opener.end))
            cursor = closer.end
        elif kind is None and not in_code and opener.name not in {*fmt.text_tags, *reported} and len(reported) < _REPORTS:
            reported.add(opener.name)
            tag = text[opener.start : opener.end]
            reason = f"{tag} is not a known tag: labelled as the model's text, also if the environment wrote it"
            unparsed.append(Unparsed(text.count("\n", 0, opener.start) + 1, line_at(text, opener.start), reason))
    return [*pieces, Piece(cursor, piece.end, None, cursor)]
