"""The definition of the span ids: character spans to token labels.

    id(token) = kind of the span that covers most of the token's characters, 0 if no span covers any

A tie goes to the earlier span. Characters outside all spans do not count.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from sadkernels.spans import SpanKind


def span_ids_from_offsets(
    offsets: Tensor, starts: Tensor, ends: Tensor, kinds: Tensor, row_splits: Tensor, *, masks: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """Returns the label of every token.

    Args:
        offsets: (B, T, 2) int64, the half-open character range of each token. An empty range gets label 0.
        starts: (M,) int64, starts of the spans of all rows. The spans of a row are sorted and do not overlap.
        ends: (M,) int64, ends of the spans.
        kinds: (M,) uint8, kinds of the spans.
        row_splits: (B + 1,) int64. Row i has the spans row_splits[i] to row_splits[i + 1].
        masks: Whether to return the paper's masks m_r and m_a (eq. 4 and 5) instead of ids.

    Returns:
        (B, T) uint8 ids, or with `masks` two (B, T) bool tensors.
    """
    ids = torch.zeros(offsets.shape[:2], dtype=torch.uint8, device=offsets.device)
    for row, (first, last) in enumerate(pairwise(row_splits.tolist())):
        if first == last:
            continue
        begin, end = offsets[row, :, 0, None], offsets[row, :, 1, None]  # (T, 1)
        overlap = torch.minimum(end, ends[first:last]) - torch.maximum(begin, starts[first:last])  # (T, spans of the row)
        best = overlap.argmax(-1)  # the first of equal values
        covered = (overlap.gather(-1, best[:, None]) > 0)[:, 0]
        ids[row] = torch.where(covered, kinds[first:last][best], 0)
    return (ids == SpanKind.REASON, ids == SpanKind.ACT) if masks else ids
