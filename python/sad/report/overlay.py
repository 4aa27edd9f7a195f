"""The mask overlay (section F.2 of the paper): a trajectory's text with reasoning blue and action red."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sad.trajectories.spans import Span, SpanKind

if TYPE_CHECKING:
    from markupsafe import Markup
    from rich.text import Text

_MARKS = {SpanKind.NONE: " ", SpanKind.REASON: "R", SpanKind.ACT: "A"}
_STYLES = {
    SpanKind.NONE: ("", "dim strike"),
    SpanKind.REASON: ("white on blue", "white on dark_blue"),
    SpanKind.ACT: ("white on red", "white on dark_red"),
}


class Piece(NamedTuple):
    """A stretch of text shown alike: a labelled token, or everything between two of them.

    `shade` alternates from token to token, so that one sees where they end; text that was cut off has shade 1 and no kind.
    """

    text: str
    kind: SpanKind
    shade: int


def token_pieces(
    text: str, offsets: Sequence[tuple[int, int]], span_ids: Sequence[int], *, truncated: int = 0, eos: str = "<eos>"
) -> list[Piece]:
    """Pieces by token. Tokens that share a character (a character split into bytes) are one piece.

    Args:
        text: What was tokenized.
        offsets: (T) character ranges of the tokens, in order.
        span_ids: (T) labels.
        truncated: How many tokens after these were cut off.
        eos: What stands for a labelled token without characters.
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
    """Pieces by span, where there is no tokenizer."""
    pieces, shown = [], 0
    for number, (start, end, kind) in enumerate(spans):
        pieces += [Piece(text[shown:start], SpanKind.NONE, 0), Piece(text[start:end], SpanKind(kind), number % 2)]
        shown = end
    pieces.append(Piece(text[shown:], SpanKind.NONE, 0))
    return [piece for piece in pieces if piece.text]


def overlay_lines(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces by line of the text; a labelled line terminator shows as an arrow."""
    lines: list[list[Piece]] = [[]]
    for piece in pieces:
        first, *others = piece.text.replace("\r\n", "\n").split("\n")
        ended = "" if piece.kind is SpanKind.NONE else "↵"
        lines[-1].append(piece._replace(text=first + (ended if others else "")))
        for number, part in enumerate(others, 1):
            lines.append([piece._replace(text=part + (ended if number < len(others) else ""))])
    return lines if any(piece.text for piece in lines[-1]) else lines[:-1]


def terminal_overlay(pieces: Sequence[Piece]) -> Text:
    """Coloured text for a rich console, each line after a margin with R (reasoning) and A (action), seen without colours."""
    from rich.text import Text

    text = Text()
    for line in overlay_lines(pieces):
        kinds = {piece.kind for piece in line if piece.text}
        margin = "".join(_MARKS[kind] for kind in (SpanKind.REASON, SpanKind.ACT) if kind in kinds)
        text.append(f"{margin:>2} │ ", style="dim")
        for piece in line:
            text.append(piece.text, style=_STYLES[piece.kind][piece.shade])
        text.append("\n")
    return text


def _environment() -> Any:
    import jinja2

    loader = jinja2.PackageLoader("sad.report")
    return jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )


def html_overlay(pieces: Sequence[Piece]) -> Markup:
    """An HTML fragment; the text is escaped. A page that holds it needs `html_style()` once, inside a <style>."""
    return _environment().get_template("overlay.html").module.overlay(overlay_lines(pieces))


def html_style() -> Markup:
    """The style sheet of `html_overlay`, light and dark."""
    return _environment().get_template("overlay.html").module.style()


def html_page(**content: Any) -> str:
    """The self-contained page of `sad inspect`; `content` is what the template `inspect.html` names."""
    return _environment().get_template("inspect.html").render(**content)
