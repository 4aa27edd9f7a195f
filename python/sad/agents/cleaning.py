"""Light cleaning of what a model wrote in one turn (paper E.2), so that its prefixes are those of format `sad`."""

from __future__ import annotations

import re
from collections.abc import Collection

REASONING, ACTION, ANSWER = "Reasoning:", "Action:", "Answer:"
_WORDS = {"reasoning": REASONING, "thought": REASONING, "think": REASONING, "action": ACTION}
_WORDS |= {"answer": ANSWER, "final answer": ANSWER}
# a prefix in any case, numbered (`Thought 2:`), emphasised (`**Action:**`), in a list or behind a prompt sign
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
    r"""Mends the form of a turn's lines and leaves their words.

    * Prefixes in another case, numbered or emphasised, and their synonyms (`Thought`, `Think`, `Final Answer`) become
      `Reasoning:`, `Action:` and `Answer:`, with one blank after them.
    * Two spans on one line (`Reasoning: ... Action: ...`) get a line each.
    * Lines without a prefix are joined to the reasoning above them, and to a prefix that stands alone.
    * A command loses quotes and backticks around it and full stops behind it.
    * Blank lines, code fences, blanks at the ends of lines and prefixes with nothing behind them go.

    Cleaning what is clean changes nothing.

    Args:
        turn: Lines the model wrote between two observations.
        admissible: Commands that stand as they are, quotes and full stops included.

    Returns:
        The lines, each ended by `\n`; "" if nothing is left.

    Example:
        >>> clean("**Thought 1:** I need a mug.\nIt is on the desk. Action: `go to desk 1.`\n")
        'Reasoning: I need a mug. It is on the desk.\nAction: go to desk 1\n'
    """
    while (cleaned := _clean_once(turn, admissible)) != turn:
        turn = cleaned
    return turn


def _clean_once(turn: str, admissible: Collection[str]) -> str:
    lines: list[tuple[str | None, str]] = []  # prefix, if any, and content
    for line in turn.splitlines():
        if _FENCE.fullmatch(line):
            continue
        for prefix, content in _parts(line, admissible):
            if prefix is None and lines and (lines[-1][0] == REASONING or (lines[-1][0] and not lines[-1][1])):
                before, begun = lines.pop()
                prefix, content = before, _tidy(before, f"{begun} {content}", admissible)
            if prefix is not None and lines and lines[-1][0] and not lines[-1][1]:
                lines.pop()  # a prefix followed by another has no content to come
            if prefix is not None or content:
                lines.append((prefix, content))
    if lines and lines[-1][0] and not lines[-1][1]:
        lines.pop()
    return "".join(f"{prefix} {content}\n" if prefix else f"{content}\n" for prefix, content in lines)


def _parts(line: str, admissible: Collection[str]) -> list[tuple[str | None, str]]:
    """A line's spans: one, or several where prefixes stand within it."""
    parts: list[tuple[str | None, str]] = []
    rest: str | None = line
    while rest is not None:
        match = _PREFIX.match(rest)
        prefix = _WORDS[match["word"].lower()] if match else None
        content, rest = rest[match.end() :] if match else rest, None
        inline = _INLINE.get(prefix or REASONING)
        if inline is not None and (seam := inline.search(content)):
            content, rest = content[: seam.start()], content[seam.end() :]
        parts.append((prefix, _tidy(prefix, content, admissible)))
    return parts


def _tidy(prefix: str | None, content: str, admissible: Collection[str]) -> str:
    content = content.strip()
    if prefix is None or content in admissible:
        return content
    while content.startswith("**") and content.count("**") == 1:  # the other half of an emphasised prefix
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
