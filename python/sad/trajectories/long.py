"""Cuts trajectories that are longer than the maximum length into examples that keep every supervised token."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from sad.trajectories.encoded import Encoded, Encoding, supervised_positions
from sad.trajectories.options import context_tokens
from sad.trajectories.segment import Segmentation
from sad.trajectories.spans import SpanKind


class Window(NamedTuple):
    """A part of a trajectory that becomes one example: its tokens [0, head) and then [start, stop).

    Args:
        head: Number of tokens of the trajectory's start that the example repeats. 0 if `start` is 0.
        start: First token after the head.
        labelled: First token that keeps its label. The tokens before it are context.
        stop: Index after the last token.
    """

    head: int
    start: int
    labelled: int
    stop: int


def windows(groups: Sequence[Sequence[int]], max_length: int, context: float, head: int) -> list[Window]:
    """Returns windows that cover every supervised token exactly once.

    Each window has at least the stated context before its first labelled token, or all tokens before it. Its context is
    longer if its group ends before the window is full.

    Args:
        groups: The positions of the supervised tokens in ascending order, in groups that no window mixes: one group of all
            positions, or one group per turn.
        max_length: Maximum number of tokens per window.
        context: Least share of a window that is context, if it does not start at the trajectory's first token.
        head: Number of tokens of the trajectory's start to repeat in every window, at most up to the first supervised one.

    Returns:
        Windows in the order of the text; none if there is no supervised token.
    """
    found: list[Window] = []
    before = context_tokens(max_length, context)
    head = min(head, groups[0][0]) if groups else 0
    room = max_length - head
    for group in groups:
        end, at = group[-1] + 1, 0
        while at < len(group):
            first = group[at]
            if end <= max_length:
                window = Window(0, 0, first, end)
            elif end - room <= first - before:  # the rest of the group fits: fill the window with history
                window = Window(head, end - room, first, end)
            elif first + before <= max_length:  # the start of the trajectory has at least as many new tokens as context
                window = Window(0, 0, first, max_length)
            else:
                start = max(first - before, head)
                window = Window(head, start, first, min(start + room, end))
            found.append(window)
            at = bisect_left(group, window.stop)
    return found


def group_by_turn(
    positions: Sequence[int], offsets: Sequence[tuple[int, int]], segmentation: Segmentation, prefixes: bool
) -> list[list[int]]:
    """Groups supervised tokens by the turn of the model. Supervised observations belong to the turn that follows them.

    Spans belong to different turns if an observation or other text stands between them.

    Args:
        positions: Positions of the supervised tokens, ascending.
        offsets: (T,) character ranges of the tokens.
        segmentation: The spans of the text.
        prefixes: Whether spans include their prefixes. Otherwise only observations separate turns.
    """
    text, spans = segmentation.text, sorted(segmentation.spans)
    if not spans:
        return [list(positions)] if positions else []
    observed = [span.start for span in segmentation.observations if span.kind is SpanKind.OBSERVE]
    turns = [0]
    for last, following in pairwise(spans):
        between = bisect_left(observed, last.end) < bisect_left(observed, following.start)
        written = prefixes and bool(text[last.end : following.start].strip())
        turns.append(turns[-1] + (between or written))
    ends = [span.end for span in spans]

    def turn_of(position: int) -> int:
        return turns[min(bisect_right(ends, offsets[position][0]), len(spans) - 1)]

    return [list(group) for _, group in groupby(positions, turn_of)]


def cut_to_length(whole: Encoded, part: Segmentation, encoding: Encoding, prefixes: bool) -> list[Encoded]:
    """Returns the examples of one example that may be longer than the maximum length."""
    ids, labels, _, offsets, weights = whole
    length = encoding.max_length
    if length is None or len(ids) <= length:
        return [whole]
    positions = supervised_positions(labels, encoding.observe) if encoding.long != "truncate" else []
    if not positions:
        kept = None if weights is None else weights[:length]
        return [Encoded(ids[:length], labels[:length], len(ids) - length, offsets[:length], kept)]
    groups = [positions] if encoding.long == "window" else group_by_turn(positions, offsets, part, prefixes)
    cut = []
    for head, start, labelled, stop in windows(groups, length, encoding.long_context, encoding.long_head):
        context = [0] * (head + labelled - start)
        own_ids, own_offsets, own_weights = (
            None if column is None else [*column[:head], *column[start:stop]] for column in (ids, offsets, weights)
        )
        cut.append(Encoded(own_ids, context + labels[labelled:stop], 0, own_offsets, own_weights))
    return cut
