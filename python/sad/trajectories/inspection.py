"""Looks at a set of trajectories before training: labels, lengths, and what does not fit the format."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from sad.trajectories.encode import Encoded, encode_with_segmentation
from sad.trajectories.formats import ChatFormat, Format
from sad.trajectories.segment import Segmentation, Unparsed
from sad.trajectories.spans import Span, SpanKind
from sad.trajectories.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


class Inspected(NamedTuple):
    """A trajectory, its spans, and its tokens where there was a tokenizer."""

    trajectory: Trajectory
    segmentation: Segmentation
    encoded: Encoded | None


@dataclass
class Inspection:
    """What `inspect_trajectories` found.

    Args:
        lengths: Lengths of the spans of all trajectories.
        kept: The first trajectories, whole.
        with_both: How many have reasoning and actions; likewise `with_reason`, `with_act`, `with_none`.
        truncated: How many were cut to the maximal length.
        unparsed: (trajectory id, `Unparsed`) of every place that did not fit its format.
    """

    lengths: SpanLengths
    kept: list[Inspected] = field(default_factory=list)
    with_both: int = 0
    with_reason: int = 0
    with_act: int = 0
    with_none: int = 0
    truncated: int = 0
    unparsed: list[tuple[str, Unparsed]] = field(default_factory=list)


def inspect_trajectories(
    trajectories: Iterable[Trajectory],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    format: str | Format | ChatFormat | None = None,
    max_length: int | None = None,
    include_prefix: bool = True,
    keep: int = 0,
) -> Inspection:
    """Segments and, with a tokenizer, encodes trajectories as training would, and takes their measure.

    Args:
        trajectories: What `read_jsonl` gives.
        tokenizer: The student's; without one lengths are in characters.
        format: As in `sad.encode`, likewise `max_length` and `include_prefix`.
        max_length: Counts only with a tokenizer.
        include_prefix: Whether spans hold their prefix.
        keep: How many of the first trajectories to keep for showing.

    Raises:
        InputError: As `sad.encode` does, naming the trajectory.
    """
    found = Inspection(SpanLengths("characters" if tokenizer is None else "tokens"))
    for trajectory in trajectories:
        if tokenizer is None:
            segmentation, encoded = trajectory.segmented(format, include_prefix), None
            lengths = [span.end - span.start for span in segmentation.spans]
            found.lengths.add(len(segmentation.text), segmentation.spans, lengths)
        else:
            encoded, segmentation = encode_with_segmentation(
                trajectory, tokenizer, format=format, max_length=max_length, include_prefix=include_prefix
            )
            lengths = tokens_per_span(segmentation.spans, encoded.offsets, encoded.span_ids)
            found.lengths.add(len(encoded.input_ids), segmentation.spans, lengths)
            found.truncated += encoded.truncated > 0
        reason, act = (any(n and s.kind is kind for s, n in zip(segmentation.spans, lengths)) for kind in MODEL_KINDS)
        found.with_reason += reason
        found.with_act += act
        found.with_both += reason and act
        found.with_none += not (reason or act)
        found.unparsed += [(trajectory.id, item) for item in segmentation.unparsed]
        if len(found.kept) < keep:
            found.kept.append(Inspected(trajectory, segmentation, encoded))
    return found
