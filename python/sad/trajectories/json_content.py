"""Splits a message that is one JSON object by its keys: `thought`, `action` and their like."""

from __future__ import annotations

import json
import re

from sad.trajectories.pieces import Piece
from sad.trajectories.spans import SpanKind

_JSON_START = re.compile(r"\s*(?:```(?:json)?[ \t]*\n\s*)?\{")
_DECODER = json.JSONDecoder()
_THOUGHT_KEYS = frozenset(
    "thought thoughts thinking think reasoning reason rationale reflection plan analysis current_state observation_summary "
    "evaluation_previous_goal memory next_goal explanation scratchpad state_analysis".split()
)
_ACTION_KEYS = frozenset(
    "action actions action_input tool tool_name tool_input tool_calls command function name arguments args parameters code "
    "answer final_answer commands keystrokes task_complete is_task_complete next_action response".split()
)


def split_json(text: str, piece: Piece) -> list[Piece]:
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
