"""Looks at a set of trajectories before training: labels, lengths, and what does not fit the format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from sad.trajectories.encode import Encoded, encode_with_segmentation
from sad.trajectories.formats import ChatFormat, Format
from sad.trajectories.segment import Segmentation, Unparsed
from sad.trajectories.statistics import MODEL_KINDS, SpanLengths, tokens_per_span
from sad.trajectories.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
