"""Finds the parts of a message in the text that a chat template has rendered: thoughts, text, calls, contents of tools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sad.trajectories.content import split_content
from sad.trajectories.formats import ChatFormat
from sad.trajectories.json_values import parsed
from sad.trajectories.lines import Unparsed
from sad.trajectories.messages import Message
from sad.trajectories.pieces import Piece
from sad.trajectories.rendering import Region
from sad.trajectories.spans import Span, SpanKind


class Part(NamedTuple):
    """A part of an assistant message in the rendered text; pieces and lines are relative to `start`."""

    role: str
    start: int
    end: int
    pieces: Sequence[Piece] = ()
    unparsed: Sequence[Unparsed] = ()


def find_parts(text: str, message: Message, region: Region, fmt: ChatFormat) -> list[Part] | None:
    """Returns the parts of a message in its turn, in the order of the text; None if one is missing."""
    content = message.content.strip()
    whole = [("reasoning", message.reasoning.strip()), ("text", content)]
    inner = [("reasoning", message.reasoning.strip()), *_visible_parts(content, bool(message.reasoning), fmt)]
    for parts in (whole, inner):
        parts = [part for part in parts if part[1]] + [("calls", call.name) for call in message.calls]
        found = _find_in_order(text, parts, region)
        calls = len(message.calls)
        for before in (0, 1) if calls else ():  # some templates write the calls first, or before the text
            if found is None and len(parts) > calls + before:
                ordered = [*parts[:before], *parts[-calls:], *parts[before:-calls]]
                found = _find_in_order(text, ordered, region)
        if found is not None:
            return [_with_pieces(text, message, item, fmt) for item in _join_calls(found)]
    return None


def _visible_parts(content: str, apart: bool, fmt: ChatFormat) -> Iterator[tuple[str, str]]:
    """Yields the thoughts and the visible text of a content whose think tags the template rewrites."""
    split = split_content(content, fmt, calls_follow=False, thoughts_apart=apart)
    start = 0
    for piece in split.pieces:
        opened = next((tags for tags in fmt.think_tags if content.startswith(tags[0], piece.start)), None)
        closes = next((tags for tags in fmt.think_tags if content.endswith(tags[1], 0, piece.end)), None)
        tags = opened or closes
        stripped = content[piece.start : piece.end].strip()
        closes_here = tags is not None and stripped.endswith(tags[1])
        if piece.kind is SpanKind.REASON and (opened or closes_here):
            yield "text", content[start : piece.start].strip()
            yield "reasoning", stripped.removeprefix(tags[0]).removesuffix(tags[1]).strip()
            start = piece.end
    yield "text", content[start:].strip()


def _find_in_order(text: str, parts: list[tuple[str, str]], region: Region) -> list[Part] | None:
    found: list[Part] = []
    cursor = region.start
    for number, (role, fragment) in enumerate(parts):
        last_text = role == "text" and number == len(parts) - 1
        at = text.rfind(fragment, cursor, region.end) if last_text else _find(text, fragment, cursor, region.end)
        if at < 0:
            return None
        found.append(Part(role, at, at + len(fragment)))
        cursor = at + len(fragment)
    return found


def _find(text: str, fragment: str, start: int, end: int) -> int:
    """Finds a fragment, preferably where it does not begin inside of a word of the template."""
    at = first = text.find(fragment, start, end)
    for _ in range(50):
        if at < 0 or at == start or not (text[at - 1].isalnum() and fragment[0].isalnum()):
            return at if at >= 0 else first
        at = text.find(fragment, at + 1, end)
    return first


def _join_calls(found: list[Part]) -> list[Part]:
    joined: list[Part] = []
    for item in found:
        if joined and item.role == joined[-1].role == "calls":
            joined[-1] = joined[-1]._replace(end=item.end)
        else:
            joined.append(item)
    return joined


def _with_pieces(text: str, message: Message, found: Part, fmt: ChatFormat) -> Part:
    if found.role != "text":
        return found
    content = text[found.start : found.end]
    if message.spans is not None and content == message.content.strip():
        lead = len(message.content) - len(message.content.lstrip())
        moved = [(max(0, s - lead), min(len(content), e - lead), kind) for s, e, kind in message.spans]
        return found._replace(pieces=[Piece(s, e, kind, s) for s, e, kind in moved if s < e])
    apart = bool(message.reasoning) or content != message.content.strip()
    split = split_content(content, fmt, calls_follow=bool(message.calls), thoughts_apart=apart)
    return found._replace(pieces=split.pieces, unparsed=split.unparsed)


def find_content(text: str, content: str, start: int, end: int) -> Span | None:
    """Finds the content of a message as it is, as a JSON string, or as JSON that the template has written anew."""
    for form in _written_forms(content):
        at = text.find(form, start, end)
        if at >= 0:
            return Span(at, at + len(form), SpanKind.OBSERVE)
    return None


def _written_forms(content: str) -> Iterator[str]:
    yield content
    yield json.dumps(content, ensure_ascii=False)[1:-1]
    yield json.dumps(content)[1:-1]
    value = parsed(content) if content[0] in "[{" else None
    if value is not None:
        yield json.dumps(value, ensure_ascii=False)
        yield json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        yield json.dumps(value, ensure_ascii=False, indent=2)
        yield json.dumps(value, ensure_ascii=False, indent=4)
