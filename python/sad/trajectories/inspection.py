"""Inspects trajectories before training: labels, span lengths (section F.3 of the paper), and unparsed places."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from sad.errors import InputError
from sad.trajectories.corpus import EncodedCorpus
from sad.trajectories.encode import encode_trajectory
from sad.trajectories.encoded import Encoded, Encoding, join_examples
from sad.trajectories.formats import ChatFormat, Format
from sad.trajectories.options import check_on_error
from sad.trajectories.refused import Refused, refusal, stop_error
from sad.trajectories.segment import Segmentation, Unparsed
from sad.trajectories.spans import Span, SpanKind, supervised_kinds
from sad.trajectories.tokenizers import check_tokenizer
from sad.trajectories.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL_KINDS = supervised_kinds()
LABELLED_KINDS = supervised_kinds(observe=True)


class LengthSummary(NamedTuple):
    """Statistics of a list of lengths; all 0 for an empty list."""

    count: int
    mean: float
    median: float
    p95: float
    max: int


def summarize(lengths: Sequence[int]) -> LengthSummary:
    """Returns count, mean, median, 95th percentile and maximum. Quantiles interpolate between neighbours."""
    if not lengths:
        return LengthSummary(0, 0.0, 0.0, 0.0, 0)
    ordered = sorted(lengths)

    def quantile(q: float) -> float:
        at = q * (len(ordered) - 1)
        low, high = ordered[int(at)], ordered[min(int(at) + 1, len(ordered) - 1)]
        return low + (high - low) * (at - int(at))

    return LengthSummary(len(ordered), sum(ordered) / len(ordered), quantile(0.5), quantile(0.95), ordered[-1])


class Bin(NamedTuple):
    """One bar of a histogram: the number of lengths from `low` to `high` inclusive. The last bin includes all above."""

    low: int
    high: int
    count: int


def histogram(lengths: Sequence[int], bins: int = 24) -> list[Bin]:
    """Returns bins of equal width up to the 99th percentile, so that one outlier does not compress all other bars."""
    if not lengths:
        return []
    top = sorted(lengths)[int(0.99 * (len(lengths) - 1))]
    width = max(1, -(-top // bins))
    counts = [0] * -(-max(top, 1) // width)
    for length in lengths:
        counts[min(max(length - 1, 0) // width, len(counts) - 1)] += 1
    return [Bin(number * width + 1, (number + 1) * width, count) for number, count in enumerate(counts)]


def tokens_per_span(spans: Sequence[Span], offsets: Sequence[tuple[int, int]], span_ids: Sequence[int]) -> list[int]:
    """Returns the number of labelled tokens of each span.

    Args:
        spans: Sorted spans that do not overlap.
        offsets: (T,) character ranges of the tokens.
        span_ids: (T,) labels of the tokens. Labels of kinds that no span has are ignored. A labelled token of zero width (an
            EOS) belongs to the last span.
    """
    counts = [0] * len(spans)
    ends, kinds = [span.end for span in spans], {span.kind for span in spans} - {SpanKind.NONE}
    for (begin, end), kind in zip(offsets, span_ids):
        if kind not in kinds:
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
    """Collects the span lengths of trajectories.

    Args:
        unit: "tokens" or "characters".
        trajectories: Number of trajectories.
        total: Total length of the trajectories, including text outside spans.
        per_span: The length of every span, by kind.
        per_trajectory: The summed length of the spans of a kind, for every trajectory that has such a span.
    """

    unit: str
    trajectories: int = 0
    total: int = 0
    per_span: dict[SpanKind, list[int]] = field(default_factory=lambda: {kind: [] for kind in LABELLED_KINDS})
    per_trajectory: dict[SpanKind, list[int]] = field(default_factory=lambda: {kind: [] for kind in LABELLED_KINDS})

    def add(self, total: int, spans: Sequence[Span], lengths: Sequence[int]) -> None:
        """Adds one trajectory: its length, its spans and their lengths. Skips spans of length 0, which were cut off."""
        self.trajectories += 1
        self.total += total
        for kind in LABELLED_KINDS:
            own = [length for span, length in zip(spans, lengths) if span.kind == kind and length]
            self.per_span[kind] += own
            if own:
                self.per_trajectory[kind].append(sum(own))

    def share(self, kind: SpanKind) -> float:
        """Returns the fraction (0 to 1) of the total length that has this kind."""
        labelled = {key: sum(lengths) for key, lengths in self.per_span.items()}
        part = self.total - sum(labelled.values()) if kind is SpanKind.NONE else labelled[kind]
        return part / self.total if self.total else 0.0


class InspectedTrajectory(NamedTuple):
    """A trajectory with its spans, and with its tokens if a tokenizer was given."""

    trajectory: Trajectory
    segmentation: Segmentation
    encoded: Encoded | None


@dataclass
class Inspection:
    """The result of `inspect_trajectories`.

    Args:
        lengths: Span lengths of all trajectories.
        kept: The first trajectories, for display.
        with_both: Number of trajectories with reasoning and actions.
        with_reason: Number of trajectories with reasoning.
        with_act: Number of trajectories with actions.
        with_none: Number of trajectories with neither.
        unparsed: (trajectory id, `Unparsed`) for every place that does not fit its format.
        tokens: The tokens of every trajectory before it is cut; empty without a tokenizer.
        corpus: What a training with these options gets; None without a tokenizer.
        refused: Trajectories that cannot be read or segmented.
    """

    lengths: SpanLengths
    kept: list[InspectedTrajectory] = field(default_factory=list)
    with_both: int = 0
    with_reason: int = 0
    with_act: int = 0
    with_none: int = 0
    unparsed: list[tuple[str, Unparsed]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    corpus: EncodedCorpus | None = None
    refused: list[Refused] = field(default_factory=list)


def inspect_trajectories(
    trajectories: Iterable[Trajectory],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    format: str | Format | ChatFormat | None = None,
    max_length: int | None = None,
    include_prefix: bool = True,
    long: str = "truncate",
    long_context: float = 0.25,
    long_head: int = 0,
    unroll: str = "auto",
    kept_ids: str = "auto",
    on_error: str = "skip",
    keep: int = 0,
    refused: Iterable[Refused] = (),
) -> Inspection:
    """Segments trajectories as training does, encodes them if a tokenizer is given, and measures their spans.

    Observations are labelled and measured too, although only a training with lambda_observe > 0 uses them. Trajectories that
    training refuses are collected. If `long` is not "truncate", long trajectories are measured and kept as a whole.

    Args:
        trajectories: Trajectories, for example from `sad.read_trajectories`.
        tokenizer: The fast tokenizer of the student. Without one, lengths are in characters.
        format: As in `sad.encode`.
        max_length: As in `sad.encode`. Ignored without a tokenizer.
        include_prefix: As in `sad.encode`.
        long: As in `sad.encode_all`.
        long_context: As in `sad.encode_all`.
        long_head: As in `sad.encode_all`.
        unroll: As in `sad.encode_all`.
        kept_ids: As in `sad.encode_all`.
        on_error: As in `sad.encode_all`. Default: refused trajectories are collected.
        keep: Number of trajectories, from the first on, to return for display.
        refused: Records that could not be read.

    Raises:
        InputError: An option is out of range, the tokenizer is slow, or a trajectory is refused and `on_error` is "stop".
    """
    check_on_error(on_error)
    encoding = Encoding(
        format=format,
        max_length=max_length,
        include_prefix=include_prefix,
        show_observations=True,
        long=long,
        long_context=long_context,
        long_head=long_head,
        unroll=unroll,
        kept_ids=kept_ids,
    )
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    found = Inspection(SpanLengths("characters" if tokenizer is None else "tokens"), refused=list(refused))
    found.corpus = None if tokenizer is None else EncodedCorpus()
    for trajectory in trajectories:
        try:
            if tokenizer is None:
                segmentation, encoded = trajectory.segmented(format, include_prefix, unroll=unroll), None
            else:
                segmentation, encoded = _encode(trajectory, tokenizer, encoding, found)
        except InputError as error:
            found.refused.append(refusal(trajectory, error))
            continue
        groups = (segmentation.spans, segmentation.observations)
        spans = [span for group in groups for span in group]
        if encoded is None:
            lengths = [span.end - span.start for span in spans]
            total = len(segmentation.text)
        else:
            lengths = [n for group in groups for n in tokens_per_span(group, encoded.offsets, encoded.span_ids)]
            total = len(encoded.input_ids)
        found.lengths.add(total, spans, lengths)
        reason, act = (any(n and s.kind is kind for s, n in zip(spans, lengths)) for kind in MODEL_KINDS)
        found.with_reason += reason
        found.with_act += act
        found.with_both += reason and act
        found.with_none += not (reason or act)
        found.unparsed += [(trajectory.id, item) for item in segmentation.unparsed]
        if len(found.kept) < keep:
            found.kept.append(InspectedTrajectory(trajectory, segmentation, encoded))
    if on_error == "stop" and found.refused:
        raise stop_error(found.refused, len(found.refused) + found.lengths.trajectories)
    return found


def _encode(
    trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase, encoding: Encoding, found: Inspection
) -> tuple[Segmentation, Encoded]:
    """Encodes a trajectory, counts what a training gets, and returns its segmentation and what is shown of it."""
    result = encode_trajectory(trajectory, tokenizer, encoding)
    found.tokens.append(sum(len(whole.input_ids) for whole in result.whole))
    found.corpus.add(trajectory, result)
    shown = result.examples if encoding.long == "truncate" else result.whole
    return result.segmentation, join_examples(shown, result.segmentation)
