"""From span ids to what a kernel needs of a row: its kind, and the weight of its KL in the loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels.kinds import SpanKind

REDUCTIONS = ("mean", "sum", "span_mean", "none")


class RowWeights(NamedTuple):
    """N rows: `kinds` (N,) uint8 after `shift`; `weights` (N,) by which the loss sums the KLs; `counts` (2,) int64."""

    kinds: Tensor
    weights: Tensor
    counts: Tensor


def row_kinds(span_ids: Tensor, shift: bool) -> Tensor:
    """(N,) uint8: 1 reason, 2 act, 0 anything else; with `shift` row t of (..., T) takes the id of t + 1."""
    supervised = (span_ids == SpanKind.REASON) | (span_ids == SpanKind.ACT)
    kinds = torch.where(supervised, span_ids, 0).to(torch.uint8)
    if shift:
        kinds = torch.nn.functional.pad(kinds[..., 1:], (0, 1))
    return kinds.reshape(-1)


def row_weights(
    span_ids: Tensor,
    normalizer: Tensor | None,
    lambdas: tuple[float, float],
    reduction: str,
    shift: bool,
    dtype: torch.dtype,
) -> RowWeights:
    """Row weights so that the loss is sum_n weights[n] KL[n] (eq. 6, divided as `reduction` says).

    `normalizer` (2,) replaces the local counts: equal entries for "mean", one per kind for "span_mean".
    A count of zero divides nothing, since no row carries its weight.
    """
    kinds = row_kinds(span_ids, shift)
    counts = torch.stack([(kinds == SpanKind.REASON).sum(), (kinds == SpanKind.ACT).sum()])
    if reduction == "none":
        return RowWeights(kinds, (kinds != 0).to(dtype), counts)
    by_kind = torch.stack([torch.full((), x, dtype=dtype, device=kinds.device) for x in lambdas])
    if reduction != "sum":
        if normalizer is None:
            normalizer = counts if reduction == "span_mean" else counts.sum().expand(2)
            normalizer = normalizer.clamp(min=1)
        # A lambda of 0 stays 0 whatever the divisor, so that its rows are neither read nor turned into NaN.
        by_kind = torch.where(by_kind == 0, 0, by_kind / normalizer.to(dtype))
    table = torch.nn.functional.pad(by_kind, (1, 0))
    return RowWeights(kinds, table[kinds.long()], counts)
