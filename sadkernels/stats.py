"""The statistics that come with a span loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KindStats(NamedTuple):
    """Sums over the tokens of one span kind, 0-dim tensors on the logits' device, of the tempered distributions.

    `kl_sum`, `teacher_entropy_sum` and `student_entropy_sum` are in nats; `tokens` and `agreements` (same argmax
    column; ties go to the lowest) are int64 counts.
    """

    kl_sum: Tensor
    tokens: Tensor
    teacher_entropy_sum: Tensor
    student_entropy_sum: Tensor
    agreements: Tensor


class SpanStats(NamedTuple):
    """The statistics of reasoning and of action tokens, from the pass that computes the loss."""

    reason: KindStats
    act: KindStats


def span_stats(sums: Tensor, counts: Tensor) -> SpanStats:
    """Names the entries of `sums` (2, 4), by kind: KL, teacher entropy, student entropy, agreements; `counts` (2,)."""
    reason, act = (KindStats(sums[k, 0], counts[k], sums[k, 1], sums[k, 2], sums[k, 3].to(torch.int64)) for k in (0, 1))
    return SpanStats(reason, act)
