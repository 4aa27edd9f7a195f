"""Lengths of reasoning and action spans (section F.3 of the paper), in tokens or characters."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sad.trajectories.spans import Span, SpanKind

MODEL_KINDS = (SpanKind.REASON, SpanKind.ACT)


class LengthSummary(NamedTuple):
    """How long things are; all 0 where there are none."""

    count: int
    mean: float
    median: float
    p95: float
    max: int


def summarize(lengths: Sequence[int]) -> LengthSummary:
    """Count, mean, median, 95th percentile (both interpolated between neighbours) and maximum."""
    if not lengths:
        return LengthSummary(0, 0.0, 0.0, 0.0, 0)
    ordered = sorted(lengths)

    def quantile(q: float) -> float:
        at = q * (len(ordered) - 1)
        low, high = ordered[int(at)], ordered[min(int(at) + 1, len(ordered) - 1)]
        return low + (high - low) * (at - int(at))

    return LengthSummary(len(ordered), sum(ordered) / len(ordered), quantile(0.5), quantile(0.95), ordered[-1])


class Bin(NamedTuple):
    """A bar of a histogram: how many lengths are in `low` to `high`, both included; the last bin holds all above too."""

    low: int
    high: int
    count: int


def histogram(lengths: Sequence[int], bins: int = 24) -> list[Bin]:
    """Counts by length, in bins of equal width that reach to the 99th percentile, so that a stray one hides nothing."""
    if not lengths:
        return []
    top = sorted(lengths)[int(0.99 * (len(lengths) - 1))]
    width = max(1, -(-top // bins))
    counts = [0] * -(-max(top, 1) // width)
    for length in lengths:
        counts[min(max(length - 1, 0) // width, len(counts) - 1)] += 1
    return [Bin(number * width + 1, (number + 1) * width, count) for number, count in enumerate(counts)]


def tokens_per_span(spans: Sequence[Span], offsets: Sequence[tuple[int, int]], span_ids: Sequence[int]) -> list[int]:
    """How many of the labelled tokens belong to each span.

    Args:
        spans: In order, not overlapping.
        offsets: (T) character ranges of the tokens.
        span_ids: (T) their labels. A labelled token of zero width, an EOS, belongs to the last span.
    """
    counts = [0] * len(spans)
    ends = [span.end for span in spans]
    for (begin, end), kind in zip(offsets, span_ids):
        if not kind:
            continue
        best, most = len(spans) - 1, 0
        for number in range(bisect_right(ends, begin), len(spans)):
            common = min(end, ends[number]) - max(begin, spans[number].start)
            if spans[number].start >= end:
                break
            if common > most:
                best, most = number, common
        counts[best] += 1
    return counts


@dataclass
class SpanLengths:
    """Lengths gathered over trajectories.

    Args:
        unit: "tokens" or "characters".
        trajectories: How many.
        total: Length of all of them together, what is in no span included.
        per_span: The length of every span, by kind.
        per_trajectory: The length of all spans of a kind together, for every trajectory that has one.
    """

    unit: str
    trajectories: int = 0
    total: int = 0
    per_span: dict[SpanKind, list[int]] = field(default_factory=lambda: {kind: [] for kind in MODEL_KINDS})
    per_trajectory: dict[SpanKind, list[int]] = field(default_factory=lambda: {kind: [] for kind in MODEL_KINDS})

    def add(self, total: int, spans: Sequence[Span], lengths: Sequence[int]) -> None:
        """Counts one trajectory: its length, its spans and their lengths (spans cut off have length 0 and are left out)."""
        self.trajectories += 1
        self.total += total
        for kind in MODEL_KINDS:
            own = [length for span, length in zip(spans, lengths) if span.kind == kind and length]
            self.per_span[kind] += own
            if own:
                self.per_trajectory[kind].append(sum(own))

    def share(self, kind: SpanKind) -> float:
        """The part of the total length that is of this kind, 0 to 1."""
        supervised = {key: sum(lengths) for key, lengths in self.per_span.items()}
        part = self.total - sum(supervised.values()) if kind is SpanKind.NONE else supervised[kind]
        return part / self.total if self.total else 0.0
