"""A tokenized trajectory, and the options that say how trajectories are tokenized and labelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sad.trajectories.formats import ChatFormat, Format
from sad.trajectories.options import check_kept_ids, check_long, check_unroll
from sad.trajectories.segment import Segmentation
from sad.trajectories.spans import supervised_kinds


class Encoded(NamedTuple):
    """A tokenized trajectory of T tokens.

    Attributes:
        input_ids: (T,) token ids.
        span_ids: (T,) labels: 0 none, 1 reason, 2 act, 3 observe.
        truncated: Number of tokens that were cut off at the end.
        offsets: (T,) half-open character ranges of the tokens in the text.
        token_weights: (T,) weights of the tokens; None if all are 1.
    """

    input_ids: list[int]
    span_ids: list[int]
    truncated: int
    offsets: list[tuple[int, int]]
    token_weights: list[float] | None = None


@dataclass(frozen=True)
class Encoding:
    """How trajectories become token ids and labels: the options of `encode_all`, which documents them.

    `show_observations` labels observations even if they are not supervised.

    Raises:
        InputError: A value is out of range.
    """

    format: str | Format | ChatFormat | None = None
    max_length: int | None = None
    add_eos: bool = True
    include_prefix: bool = True
    observe: bool = False
    long: str = "truncate"
    long_context: float = 0.25
    long_head: int = 0
    unroll: str = "auto"
    show_observations: bool = False
    kept_ids: str = "auto"

    def __post_init__(self) -> None:
        check_unroll(self.unroll)
        check_kept_ids(self.kept_ids)
        check_long(self.long, self.max_length, self.long_context, self.long_head)


class EncodedTrajectory(NamedTuple):
    """The examples of a trajectory.

    Args:
        whole: The examples before they are cut: one, or several if the chat template drops thoughts of earlier turns.
        examples: The examples for training. None is longer than the maximum length.
        segmentation: What they are made from.
        kept: Whether the ids are those of the play.
        not_kept: Why the ids of the play are not used; "" if there are none or if they are used.
    """

    whole: list[Encoded]
    examples: list[Encoded]
    segmentation: Segmentation
    kept: bool = False
    not_kept: str = ""


def join_examples(examples: Sequence[Encoded], segmentation: Segmentation) -> Encoded:
    """Returns the examples of a segmentation one after the other, with offsets in its whole text."""
    weighted = any(example.token_weights is not None for example in examples)
    joined = Encoded([], [], sum(example.truncated for example in examples), [], [] if weighted else None)
    for start, example in zip(segmentation.starts, examples):
        joined.input_ids.extend(example.input_ids)
        joined.span_ids.extend(example.span_ids)
        joined.offsets.extend((begin + start, end + start) for begin, end in example.offsets)
        if joined.token_weights is not None:
            joined.token_weights.extend(example.token_weights or [1.0] * len(example.input_ids))
    return joined


def supervised_positions(span_ids: Sequence[int], observe: bool) -> list[int]:
    """Returns the positions of the supervised tokens."""
    kinds = set(supervised_kinds(observe))
    return [position for position, kind in enumerate(span_ids) if kind in kinds]
