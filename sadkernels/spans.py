"""Span kinds, and the statistics that a loss reports for each kind. Imports no PyTorch: text tools use the kinds alone."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class SpanKind(IntEnum):
    """The span a token belongs to. Any other id, such as the -100 of a padded label, means `NONE`.

    The model wrote the tokens of `REASON` and `ACT`, the environment those of `OBSERVE`. A loss reads the latter only with
    `lambda_observe` > 0.
    """

    NONE = 0
    REASON = 1
    ACT = 2
    OBSERVE = 3


class KindStats(NamedTuple):
    """Sums over the tokens of one span kind: 0-dim tensors on the logits' device, of the tempered distributions.

    `kl_sum`, `teacher_entropy_sum` and `student_entropy_sum` are in nats. `tokens` and `agreements` are int64 counts; a
    token agrees if student and teacher have the same argmax column (ties: the lowest column).
    """

    kl_sum: Tensor
    tokens: Tensor
    teacher_entropy_sum: Tensor
    student_entropy_sum: Tensor
    agreements: Tensor


class SpanStats(NamedTuple):
    """The statistics of each kind, from the pass that computes the loss; 0 for `observe` if lambda_observe is 0."""

    reason: KindStats
    act: KindStats
    observe: KindStats


def span_stats(sums: Tensor, counts: Tensor) -> SpanStats:
    """Names the entries of `sums` (3, 4) and `counts` (3,), whose rows are reason, act and observe.

    The columns of `sums` are divergence, teacher entropy, student entropy and agreements.
    """
    kl, teacher_entropy, student_entropy, agreements = sums.unbind(1)
    columns = (kl, counts, teacher_entropy, student_entropy, agreements.long())
    return SpanStats(*(KindStats(*row) for row in zip(*(column.unbind() for column in columns))))
