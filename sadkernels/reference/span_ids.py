"""Character spans to token labels, written to be read.

    id(token) = kind of argmax over spans of |token intersect span|     (0 where no span touches the token)

Ties go to the earlier span, and characters outside all spans do not compete.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from sadkernels.spans import SpanKind


def span_ids_from_offsets(
    offsets: Tensor, starts: Tensor, ends: Tensor, kinds: Tensor, row_splits: Tensor, *, masks: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """The label of every token.

    Args:
        offsets: (B, T, 2) int64, half-open character range of each token; an empty range gets 0.
        starts: (M,) int64, the spans of all rows; within a row sorted and not overlapping.
        ends: (M,) int64.
        kinds: (M,) uint8.
        row_splits: (B + 1,) int64; row i owns spans row_splits[i] to row_splits[i + 1].
        masks: Give m_r and m_a in place of the ids.

    Returns:
        (B, T) uint8, or with `masks` two (B, T) bool tensors.
    """
    ids = torch.zeros(offsets.shape[:2], dtype=torch.uint8, device=offsets.device)
    splits = row_splits.tolist()
    for row, (first, last) in enumerate(pairwise(splits)):
        if first == last:
            continue
        begin, end = offsets[row, :, 0, None], offsets[row, :, 1, None]  # (T, 1)
        common = torch.minimum(end, ends[first:last]) - torch.maximum(begin, starts[first:last])  # (T, S)
        winner = common.argmax(-1)  # of equal values the first
        touched = (common.gather(-1, winner[:, None]) > 0)[:, 0]
        ids[row] = torch.where(touched, kinds[first:last][winner], 0)
    return (ids == SpanKind.REASON, ids == SpanKind.ACT) if masks else ids
