"""Light cleaning of the text of one turn (paper E.2), so that its prefixes match the format `sad`."""

from __future__ import annotations

import re
from collections.abc import Collection

REASONING, ACTION, ANSWER = "Reasoning:", "Action:", "Answer:"
_PREFIX_OF_WORD = {"reasoning": REASONING, "thought": REASONING, "think": REASONING, "action": ACTION}
_PREFIX_OF_WORD |= {"answer": ANSWER, "final answer": ANSWER}
# a prefix in any case, with a number (`Thought 2:`), emphasis (`**Action:**`), a list marker or a prompt sign
_PREFIX = re.compile(
    r"[\s>#*_`-]*(?P<word>Reasoning|Thought|Think|Action|Final Answer|Answer)[ \t]?\d*[*_`]*[ \t]?:[*_`]*", re.IGNORECASE
)
_INLINE = {
    REASONING: re.compile(r"\s+(?=[*_`]*(?:Action|Answer)[*_`]*:)"),
    ACTION: re.compile(r"\s+(?=[*_`]*Reasoning[*_`]*:)"),
}
_PAIRS = ("``", "''", '""', "**")
_FENCE = re.compile(r"\s*```\w*\s*")


def clean(turn: str, admissible: Collection[str] = ()) -> str:
    r"""Normalizes the form of the lines of a turn and keeps their words.

    * Prefixes in another case, with a number or with emphasis, and the synonyms `Thought`, `Think` and `Final Answer`
      become `Reasoning:`, `Action:` or `Answer:`, followed by one space.
    * Two spans on one line (`Reasoning: ... Action: ...`) become two lines.
    * A line without a prefix is joined to the reasoning above it, or to a prefix without content above it.
    * Quotes and backticks around a command and full stops after it are removed.
    * Blank lines, code fences, trailing spaces and prefixes without content are removed.

    The function is idempotent.

    Args:
        turn: The lines that the model wrote between two observations.
        admissible: Commands that stay unchanged, with their quotes and full stops.

    Returns:
        The lines, each with `\n` at its end, or "" if no line remains.

    Example:
        >>> clean("**Thought 1:** I need a mug.\nIt is on the desk. Action: `go to desk 1.`\n")
        'Reasoning: I need a mug. It is on the desk.\nAction: go to desk 1\n'
    """
    while (cleaned := _clean_once(turn, admissible)) != turn:
        turn = cleaned
    return turn


def kinds_of_lines(turn: str) -> list[tuple[int, int, str | None]]:
    """Returns the parts of an uncleaned turn as (start, end, prefix), in order and without gaps.

    The prefix is that of `clean`: a part without one of its own has the prefix of the reasoning above it, or of a prefix
    without content above it; None if there is neither.
    """
    found: list[tuple[int, int, str | None]] = []
    above: tuple[str | None, bool] = (None, False)  # the prefix of the part above, and whether it has content
    start = 0
    for line in turn.splitlines(keepends=True):
        at, rest = start, line
        while rest:
            match = _PREFIX.match(rest)
            prefix = _PREFIX_OF_WORD[match["word"].lower()] if match else None
            begin = match.end() if match else 0
            inline = _INLINE.get(prefix or REASONING)
            gap = inline.search(rest, begin) if inline is not None else None
            length = gap.end() if gap else len(rest)
            content = bool(rest[begin:length].strip()) and not _FENCE.fullmatch(rest[begin:length])
            if prefix is None and (above[0] == REASONING or (above[0] and not above[1])):
                prefix, content = above[0], above[1] or content
            found.append((at, at + length, prefix))
            above = (prefix, content)
            at, rest = at + length, rest[length:]
        start += len(line)
    return found


def _clean_once(turn: str, admissible: Collection[str]) -> str:
    lines: list[tuple[str | None, str]] = []  # (prefix or None, content)
    for line in turn.splitlines():
        if _FENCE.fullmatch(line):
            continue
        for prefix, content in _parts(line, admissible):
            if prefix is None and lines and (lines[-1][0] == REASONING or (lines[-1][0] and not lines[-1][1])):
                prefix, above = lines.pop()
                content = _tidy(prefix, f"{above} {content}", admissible)
            if prefix is not None and lines and lines[-1][0] and not lines[-1][1]:
                lines.pop()  # a prefix directly before another prefix stays without content
            if prefix is not None or content:
                lines.append((prefix, content))
    if lines and lines[-1][0] and not lines[-1][1]:
        lines.pop()
    return "".join(f"{prefix} {content}\n" if prefix else f"{content}\n" for prefix, content in lines)


def _parts(line: str, admissible: Collection[str]) -> list[tuple[str | None, str]]:
    """Splits a line into its spans at the prefixes inside it."""
    parts: list[tuple[str | None, str]] = []
    rest: str | None = line
    while rest is not None:
        match = _PREFIX.match(rest)
        prefix = _PREFIX_OF_WORD[match["word"].lower()] if match else None
        content, rest = rest[match.end() :] if match else rest, None
        inline = _INLINE.get(prefix or REASONING)
        if inline is not None and (gap := inline.search(content)):
            content, rest = content[: gap.start()], content[gap.end() :]
        parts.append((prefix, _tidy(prefix, content, admissible)))
    return parts


def _tidy(prefix: str | None, content: str, admissible: Collection[str]) -> str:
    content = content.strip()
    if prefix is None or content in admissible:
        return content
    while content.startswith("**") and content.count("**") == 1:  # the closing half of the emphasis of a prefix
        content = content[2:].lstrip()
    while content.endswith("**") and content.count("**") == 1:
        content = content[:-2].rstrip()
    if prefix == REASONING:
        return content
    tidied = content
    while len(tidied) > 1 and tidied[0] + tidied[-1] in _PAIRS and tidied[0] not in tidied[1:-1]:
        tidied = tidied[1:-1].strip()
    if prefix == ACTION and tidied not in admissible:
        tidied = tidied.rstrip(". ")
    return tidied if tidied in admissible or tidied == content else _tidy(prefix, tidied, admissible)
