"""The mask overlay (paper, section F.2): a text with reasoning in blue, actions in red and observations in grey-green."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sad.errors import printable
from sad.trajectories.spans import Span, SpanKind

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_MARKS = {SpanKind.REASON: "R", SpanKind.ACT: "A", SpanKind.OBSERVE: "O"}
_MARGIN = 5  # columns of the margin of the terminal
_NARROWEST = 20  # columns that a line gets at least
_STYLES = {
    SpanKind.NONE: ("", "dim strike"),
    SpanKind.REASON: ("white on blue", "white on dark_blue"),
    SpanKind.ACT: ("white on red", "white on dark_red"),
    SpanKind.OBSERVE: ("black on color(108)", "black on color(151)"),
}


class Piece(NamedTuple):
    """A part of the text with one style: a labelled token, or the text between two labelled tokens.

    Attributes:
        text: The text.
        kind: Reasoning, action, observation, or none.
        shade: 0 or 1, alternating between labelled tokens to show where they end. Truncated text has kind none, shade 1.
    """

    text: str
    kind: SpanKind
    shade: int


def token_pieces(
    text: str, offsets: Sequence[tuple[int, int]], span_ids: Sequence[int], *, truncated: int = 0, eos: str = "<eos>"
) -> list[Piece]:
    """Returns one piece per labelled token. Tokens that share a character (split into bytes) are one piece.

    Args:
        text: The tokenized text.
        offsets: (T,) character ranges of the tokens, in order.
        span_ids: (T,) span ids of the tokens.
        truncated: Number of tokens removed from the end.
        eos: The text shown for a labelled token without characters.
    """
    pieces: list[Piece] = []
    shown = shade = 0
    kept = max((end for _, end in offsets), default=0) if truncated else len(text)
    for (begin, end), label in zip(offsets, span_ids):
        if not label:
            continue
        begin = max(begin, shown)
        if begin > shown:
            pieces.append(Piece(text[shown:begin], SpanKind.NONE, 0))
            shown = begin
        if end > shown or begin == len(text):
            shade = 1 - shade
            pieces.append(Piece(text[shown:end] or eos, SpanKind(label), shade))
            shown = max(shown, end)
    rest = [Piece(text[shown:kept], SpanKind.NONE, 0), Piece(text[max(shown, kept) :], SpanKind.NONE, 1)]
    return pieces + [piece for piece in rest if piece.text]


def span_pieces(text: str, spans: Sequence[Span]) -> list[Piece]:
    """Returns one piece per span, for a text without a tokenizer. The spans are in any order and do not overlap."""
    pieces, shown = [], 0
    for number, (start, end, kind) in enumerate(sorted(spans)):
        pieces += [Piece(text[shown:start], SpanKind.NONE, 0), Piece(text[start:end], SpanKind(kind), number % 2)]
        shown = end
    pieces.append(Piece(text[shown:], SpanKind.NONE, 0))
    return [piece for piece in pieces if piece.text]


def overlay_lines(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Splits the pieces into lines. A labelled line end is shown as an arrow."""
    lines: list[list[Piece]] = [[]]
    for piece in pieces:
        first, *rest = piece.text.replace("\r\n", "\n").split("\n")
        end = "" if piece.kind is SpanKind.NONE else "↵"
        lines[-1].append(piece._replace(text=first + (end if rest else "")))
        for number, part in enumerate(rest, 1):
            lines.append([piece._replace(text=part + (end if number < len(rest) else ""))])
    return lines if any(piece.text for piece in lines[-1]) else lines[:-1]


def terminal_overlay(pieces: Sequence[Piece], console: Console) -> Text:
    """Returns the overlay for a rich console.

    A margin with R (reasoning), A (action) and O (observation) shows the kinds without colors. On a terminal, long lines are
    broken between words and continue beside an empty margin; elsewhere they stay whole.
    """
    from rich.text import Text

    text = Text()
    for line in overlay_lines(pieces):
        kinds = {piece.kind for piece in line if piece.text}
        margin = "".join(mark for kind, mark in _MARKS.items() if kind in kinds)
        content = Text()
        for piece in line:
            content.append(printable(piece.text), style=_STYLES[piece.kind][piece.shade])
        parts = content.wrap(console, max(_NARROWEST, console.width - _MARGIN)) if console.is_terminal else [content]
        for number, part in enumerate(parts):
            text.append(f"{'' if number else margin:>2} │ ", style="dim")
            text.append_text(part)
            text.append("\n")
    return text
