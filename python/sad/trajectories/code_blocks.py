"""Finds the code blocks of a message, and splits off one that ends it as the action."""

from __future__ import annotations

import re

from sad.trajectories.lines import Unparsed
from sad.trajectories.pieces import Piece, line_at
from sad.trajectories.spans import SpanKind

_FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})([^\n`]*)$", re.MULTILINE)
_TRAILER = re.compile(r"\s*(?:<end_code>|<end_action>|<\|end\|>)?\s*\Z")
_CODE_LABEL = re.compile(r"(?:\A|\n)[ \t]*(?:\*\*)?(?:Code|Command|Action)[ \t]?:(?:\*\*)?[ \t]*\n\Z", re.IGNORECASE)


def code_blocks(text: str, piece: Piece) -> list[tuple[int, int]]:
    """Returns the ranges of the closed code blocks in a piece."""
    blocks: list[tuple[int, int]] = []
    if text.find("```", piece.start, piece.end) < 0 and text.find("~~~", piece.start, piece.end) < 0:
        return blocks
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text, piece.start, piece.end):
        if opened is None:
            opened = fence
        elif fence[1].startswith(opened[1]) and fence[2].strip() in ("", "<end_code>", "<end_action>"):
            blocks.append((opened.start(), fence.end(1)))
            opened = None
    return blocks


def split_code_block(text: str, piece: Piece, unparsed: list[Unparsed]) -> list[Piece]:
    """Splits off a code block that ends the piece as the action; reports code blocks elsewhere."""
    blocks = code_blocks(text, piece)
    if not blocks:
        return [piece]
    start, end = blocks[-1]
    if not _TRAILER.match(text, end, piece.end):
        reason = "a code block that does not end the message: not split into a thought and an action"
        unparsed.append(Unparsed(text.count("\n", 0, start) + 1, line_at(text, start), reason))
        return [piece]
    label = _CODE_LABEL.search(text[max(piece.start, start - 40) : start])
    if label:
        begin = max(piece.start, start - 40) + label.start()
        start = begin + (text[begin] == "\n")
    if not text[piece.start : start].strip():
        return [piece._replace(kind=SpanKind.ACT)]
    thought = piece._replace(end=start, kind=SpanKind.REASON)
    return [thought, Piece(start, piece.end, SpanKind.ACT, start)]
