"""Splits what a model wrote in one message into thoughts, actions, and what the environment inserted.

The model wrote all of the message, apart from observations, so the pieces leave no gap: an action goes on to the next
thought, to an observation, or to the end of the message. The time is linear in the length of the content.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from sad.trajectories.formats import ChatFormat, Format, get_format
from sad.trajectories.lines import Unparsed
from sad.trajectories.spans import Span, SpanKind

_TAG = re.compile(r"<(?P<close>/?)(?P<name>[A-Za-z_][\w.-]{0,60})(?P<rest>=[^<>\n]{0,200}|\s[^<>\n]{0,400})?>")
_FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})([^\n`]*)$", re.MULTILINE)
_TRAILER = re.compile(r"\s*(?:<end_code>|<end_action>|<\|end\|>)?\s*\Z")
_CODE_LABEL = re.compile(r"(?:\A|\n)[ \t]*(?:\*\*)?(?:Code|Command|Action)[ \t]?:(?:\*\*)?[ \t]*\n\Z", re.IGNORECASE)
_DECORATION = re.compile(r"[ \t]*(?:#{1,6}[ \t]+)?(?:\*{1,2}|__)?")
_AFTER_PREFIX = re.compile(r"(?:\*{1,2}|__)?[ \t]*")
_DECORATED = re.compile(r"([^\n:*_#]{1,30})(?:\*{1,2}|__)[ \t]?:[ \t]*")  # the rest of `**Thought**:`
_HEADING = re.compile(r"([^\n:*_#]{1,30}?)[ \t]*(?:\*{1,2}|__)?[ \t]*[\r\n]")  # the rest of `### Thought`
_JSON_START = re.compile(r"\s*(?:```(?:json)?[ \t]*\n\s*)?\{")
_DECODER = json.JSONDecoder()
_REPORTS = 5  # per message
_THOUGHT_KEYS = frozenset(
    "thought thoughts thinking think reasoning reason rationale reflection plan analysis current_state observation_summary "
    "evaluation_previous_goal memory next_goal explanation scratchpad".split()
)
_ACTION_KEYS = frozenset(
    "action actions action_input tool tool_name tool_input tool_calls command function name arguments args parameters code "
    "answer final_answer".split()
)


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
        pieces = [new for piece in pieces for new in _split_thoughts(text, piece, fmt)]
    split = []
    for piece in pieces:
        split += _split_tags(text, piece, fmt, unparsed) if piece.kind is None else [piece]
    if not any(piece.kind is SpanKind.ACT for piece in split):
        split = [new for piece in split for new in _split_unknown(text, piece, formats, calls_follow, unparsed)]
    return SplitContent(tuple(_settle(text, split, calls_follow)), tuple(sorted(unparsed)))


_split_short = lru_cache(maxsize=4096)(_split)


def spans_of(pieces: Sequence[Piece], include_prefix: bool) -> list[Span]:
    """Returns the pieces that the model wrote as spans."""
    starts = [piece.start if include_prefix else min(piece.content, piece.end) for piece in pieces]
    return [Span(s, piece.end, piece.kind) for s, piece in zip(starts, pieces) if piece.kind and s < piece.end]


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
        if settled and settled[-1].end == opened:  # blanks after a closing tag belong to it
            opened += len(text[opened : piece.end]) - len(text[opened : piece.end].lstrip())
            settled[-1] = settled[-1]._replace(end=opened)
        if settled and settled[-1].kind is kind and piece.kind is None:
            settled[-1] = settled[-1]._replace(end=piece.end)
        else:
            settled.append(Piece(opened, piece.end, kind, max(piece.content, opened)))
        start = piece.end
    return settled


def _split_thoughts(text: str, piece: Piece, fmt: ChatFormat) -> Iterator[Piece]:
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
    while at >= 0 and not _begins_line(text, at, cursor):
        at = text.find(opening, at + len(opening))
    return at


class _Tag(NamedTuple):
    name: str
    start: int
    end: int


def _paired_tags(text: str, piece: Piece) -> Iterator[tuple[_Tag, _Tag]]:
    """Yields the outermost pairs of tags whose opening tag begins a line or follows a tag."""
    tags = list(_TAG.finditer(text, piece.start, piece.end))
    closers: dict[str, list[int]] = {}
    for number, tag in enumerate(tags):
        if tag["close"]:
            closers.setdefault(tag["name"].lower(), []).append(number)
    for numbers in closers.values():
        numbers.reverse()
    after = piece.start
    for number, tag in enumerate(tags):
        if tag["close"] or tag.start() < after:
            continue
        waiting = closers.get(tag["name"].lower(), [])
        while waiting and waiting[-1] <= number:
            waiting.pop()
        if not waiting or not _begins_line(text, tag.start(), after):
            continue
        closer = tags[waiting[-1]]
        yield _Tag(tag["name"].lower(), tag.start(), tag.end()), _Tag(tag["name"].lower(), closer.start(), closer.end())
        after = closer.end()


def _begins_line(text: str, at: int, after: int) -> bool:
    """Returns whether only blanks stand between `at` and the start of its line, or `after`, or whether a tag ends there."""
    window = max(after, at - 80)
    lead = text[window:at].rstrip(" \t")
    return lead.endswith(("\n", ">")) or (not lead and window == after)


@lru_cache(maxsize=16)
def _kinds_of_tags(fmt: ChatFormat) -> dict[str, SpanKind]:
    return {
        **dict.fromkeys(fmt.action_tags, SpanKind.ACT),
        **dict.fromkeys(fmt.reason_tags, SpanKind.REASON),
        **dict.fromkeys(fmt.environment_tags, SpanKind.NONE),
    }


def _split_tags(text: str, piece: Piece, fmt: ChatFormat, unparsed: list[Unparsed]) -> list[Piece]:
    """Splits by paired tags: of the environment, of thoughts and of actions. Reports pairs of unknown name."""
    if text.find("<", piece.start, piece.end) < 0:
        return [piece]
    pieces: list[Piece] = []
    reported: set[str] = set()
    cursor = piece.start
    fences = _fenced(text, piece)
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
            unparsed.append(Unparsed(text.count("\n", 0, opener.start) + 1, _line_at(text, opener.start), reason))
    return [*pieces, Piece(cursor, piece.end, None, cursor)]


def _fenced(text: str, piece: Piece) -> list[tuple[int, int]]:
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


def _split_unknown(
    text: str, piece: Piece, formats: tuple[Format, ...], calls_follow: bool, unparsed: list[Unparsed]
) -> list[Piece]:
    """Splits text without tags of actions: a JSON object, line prefixes, a code block at the end."""
    if piece.kind is not None or not text[piece.start : piece.end].strip():
        return [piece]
    pieces = _split_prefixes(text, piece, formats, unparsed) or [piece]
    if calls_follow or any(new.kind is SpanKind.ACT for new in pieces) or pieces[-1].kind is SpanKind.NONE:
        return pieces
    last = pieces[-1]
    return [*pieces[:-1], *((last.kind is None and _split_json(text, last)) or _split_fence(text, last, unparsed))]


def _split_fence(text: str, piece: Piece, unparsed: list[Unparsed]) -> list[Piece]:
    """Splits off a code block that ends the piece as the action; reports code blocks elsewhere."""
    blocks = _fenced(text, piece)
    if not blocks:
        return [piece]
    start, end = blocks[-1]
    if not _TRAILER.match(text, end, piece.end):
        reason = "a code block that does not end the message: not split into a thought and an action"
        unparsed.append(Unparsed(text.count("\n", 0, start) + 1, _line_at(text, start), reason))
        return [piece]
    label = _CODE_LABEL.search(text[max(piece.start, start - 40) : start])
    if label:
        begin = max(piece.start, start - 40) + label.start()
        start = begin + (text[begin] == "\n")
    if not text[piece.start : start].strip():
        return [piece._replace(kind=SpanKind.ACT)]
    thought = piece._replace(end=start, kind=SpanKind.REASON)
    return [thought, Piece(start, piece.end, SpanKind.ACT, start)]


def _split_json(text: str, piece: Piece) -> list[Piece]:
    """Splits an object with thoughts and actions as keys, fenced or not; returns [] for any other text."""
    opened = _JSON_START.match(text, piece.start, piece.end)
    if opened is None:
        return []
    decoder, at = _DECODER, opened.end() - 1
    marks: list[tuple[int, str]] = []
    try:
        at += 1
        while True:
            at = _skip_blanks(text, at)
            key, after = decoder.raw_decode(text, at)
            marks.append((at, key if isinstance(key, str) else ""))
            after = _skip_blanks(text, after)
            if not text.startswith(":", after):
                return []
            _, after = decoder.raw_decode(text, _skip_blanks(text, after + 1))
            at = _skip_blanks(text, after)
            if text.startswith("}", at):
                break
            if not text.startswith(",", at):
                return []
            at += 1
    except (ValueError, RecursionError):
        return []
    if text[at + 1 : piece.end].strip().strip("`").strip():
        return []
    kinds = [
        SpanKind.REASON if key.lower() in _THOUGHT_KEYS else SpanKind.ACT if key.lower() in _ACTION_KEYS else None
        for _, key in marks
    ]
    if SpanKind.REASON not in kinds or SpanKind.ACT not in kinds:
        return []
    pieces: list[Piece] = []
    start = piece.start
    for number, kind in enumerate(kinds):
        end = marks[number + 1][0] if number + 1 < len(marks) else piece.end
        if pieces and (kind is None or kind is pieces[-1].kind):
            pieces[-1] = pieces[-1]._replace(end=end)
        else:
            pieces.append(Piece(start, end, kind or SpanKind.ACT, start))
        start = end
    return pieces


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _split_prefixes(text: str, piece: Piece, formats: tuple[Format, ...], unparsed: list[Unparsed]) -> list[Piece]:
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
        unparsed.append(Unparsed(text.count("\n", 0, first.start) + 1, _line_at(text, first.start), reason))
    return []


@lru_cache(maxsize=16)
def _patterns(formats: tuple[Format, ...]) -> list[tuple[re.Pattern[str], SpanKind]]:
    """Returns the patterns of prefixes in the order in which they are tried."""
    kinds = (("environment", SpanKind.NONE), ("reason", SpanKind.REASON), ("act", SpanKind.ACT))
    return [(found.patterns[key], kind) for key, kind in kinds for found in formats if key in found.patterns]


def _report_suspects(text: str, piece: Piece, formats: tuple[Format, ...], unparsed: list[Unparsed]) -> None:
    """Reports the first line that looks like a prefix of a format that is not among the text formats."""
    suspects = [found.patterns["suspect"].match for found in formats if "suspect" in found.patterns]
    for start, end in _lines(text, piece):
        content = _DECORATION.match(text, start, end).end()
        for suspect in suspects:
            if suspect(text, content, end):
                number = text.count("\n", 0, start) + 1
                reason = "looks like a prefix of an unknown format: not split"
                unparsed.append(Unparsed(number, _line_at(text, start), reason))
                return


def _is_answer(text: str, piece: Piece) -> bool:
    head = text[piece.start : piece.start + 40].lstrip(" \t*#_").lower()
    return head.startswith(("answer", "final answer"))


def _lines(text: str, piece: Piece) -> Iterator[tuple[int, int]]:
    start = piece.start
    while start < piece.end:
        end = text.find("\n", start, piece.end) + 1 or piece.end
        yield start, end
        start = end


def _pieces_by_prefix(text: str, piece: Piece, formats: tuple[Format, ...]) -> list[Piece]:
    """Returns the pieces from the first prefix on; each ends at the next prefix or at the end of the text."""
    patterns = _patterns(formats)
    prefixes = [
        (start, found) for start, end in _lines(text, piece) if (found := _prefix(text, start, end, patterns)) is not None
    ]
    ends = [start for start, _ in prefixes[1:]]
    return [Piece(start, end, *found) for (start, found), end in zip(prefixes, [*ends, piece.end])]


def _prefix(
    text: str, start: int, end: int, patterns: list[tuple[re.Pattern[str], SpanKind]]
) -> tuple[SpanKind, int] | None:
    """Returns the kind of the prefix of a line, plain or in Markdown, and the index after it; None without a prefix."""
    at = _DECORATION.match(text, start, end).end()
    if at >= end or text[at] in "\r\n":
        return None
    for pattern, kind in patterns:
        if match := pattern.match(text, at, end):
            return kind, _AFTER_PREFIX.match(text, match.end(), end).end()
    if at > start and text[at - 1] in "*_# \t":
        heading = text[start:at].lstrip().startswith("#")
        match = _DECORATED.match(text, at, end) or (_HEADING.match(text, at, end) if heading else None)
        if match:
            label = match[1].strip() + ":"
            for pattern, kind in patterns:
                if pattern.fullmatch(label):
                    return kind, match.end()
    return None


def _line_at(text: str, at: int) -> str:
    start = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at)
    return text[start : end if end >= 0 else len(text)].strip()[:200]
