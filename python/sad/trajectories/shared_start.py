"""Finds lines that open most trajectories of a training set and would be trained: few-shot examples, format instructions."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sad.trajectories.spans import Span

_TRAJECTORIES = 500  # that are compared
_LINES, _CHARACTERS = 200, 20_000  # of each
_LEAST = 4  # trajectories with different tasks below which nothing is said
_SHARE = 0.5


class _Line(NamedTuple):
    """A line that is not blank: its text, the index after it, and whether a span of the model touches it."""

    text: str
    end: int
    labelled: bool


@dataclass
class SharedStart:
    """Compares the first lines of trajectories. Trajectories of the same task count once."""

    _starts: list[list[_Line]] = field(default_factory=list)
    _tasks: set[str] = field(default_factory=set)

    def add(self, text: str, spans: Sequence[Span], task: str | None) -> None:
        """Adds a trajectory: its text, the spans that the model wrote, and its task if it is known."""
        key = text if task is None else task
        if len(self._starts) < _TRAJECTORIES and key not in self._tasks:
            self._tasks.add(key)
            self._starts.append(_first_lines(text, spans))

    def warning(self) -> str | None:
        """Returns the warning; None if no line that most trajectories open with is labelled."""
        alike = self._starts
        labelled: list[str] = []
        lines, end = 0, 0
        for number in range(_LINES):
            counts = Counter(start[number] for start in alike if len(start) > number)
            if not counts:
                break
            line, count = counts.most_common(1)[0]
            if count <= _SHARE * len(self._starts):
                break
            alike = [start for start in alike if len(start) > number and start[number] == line]
            lines, end = number + 1, line.end
            labelled += [line.text] if line.labelled else []
        if len(self._starts) < _LEAST or not labelled:
            return None
        shown = ", ".join(repr(text if len(text) <= 60 else f"{text[:57]}...") for text in labelled[:3])
        return (
            f"{len(alike)} of {len(self._starts)} trajectories open with the same {lines} lines, and {len(labelled)} of "
            f"these would be trained: {shown}. If they are a prompt (examples, format instructions), exclude them: write "
            f'"prompt_chars": {end} into these trajectories, or "train": false into these messages.'
        )


def _first_lines(text: str, spans: Sequence[Span]) -> list[_Line]:
    ordered = sorted(spans)
    ends = [span.end for span in ordered]
    found, start = [], 0
    while start < min(len(text), _CHARACTERS) and len(found) < _LINES:
        end = text.find("\n", start) + 1 or len(text)
        if line := text[start:end].strip():
            at = bisect_right(ends, start)
            found.append(_Line(line, end, at < len(ordered) and ordered[at].start < end))
        start = end
    return found
