"""Kernel and launcher of the span ids: character spans to token labels, a whole batch in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sadkernels.spans import SpanKind
from sadkernels.triton.launch import Launch

# Tokens per program: four per thread, so that their memory accesses overlap. One warp, because all tokens of a program step
# until the last one has best_span its span, and several warps would have to synchronize at every step.
_BLOCK, _WARPS = 128, 1

_POINTERS = ["offsets", "starts", "ends", "kinds", "row_splits", "ids", "m_r", "m_a"]


@triton.jit(do_not_specialize=["n_tokens", "row_tokens"], do_not_specialize_on_alignment=_POINTERS)
def span_ids_kernel(
    offsets,
    starts,
    ends,
    kinds,
    row_splits,
    ids,
    m_r,
    m_a,
    n_tokens: tl.int64,
    row_tokens: tl.int64,
    REASON: tl.constexpr,
    ACT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Labels BLOCK of the `n_tokens` tokens of all rows; each row has `row_tokens` tokens. An output may be None."""
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = token < n_tokens
    row = token // row_tokens
    begin = tl.load(offsets + 2 * token, mask=exists, other=0).to(tl.int64)
    end = tl.load(offsets + 2 * token + 1, mask=exists, other=0).to(tl.int64)
    nonempty = exists & (end > begin)
    # Binary search for the first span that ends after the token begins. A row's spans are sorted by start and by end.
    low = tl.load(row_splits + row, mask=nonempty, other=0).to(tl.int64)
    last = tl.load(row_splits + row + 1, mask=nonempty, other=0).to(tl.int64)
    high = last
    while tl.max(high - low, axis=0) > 0:
        middle = low + (high - low) // 2
        ends_later = tl.load(ends + middle, mask=low < high, other=0) > begin
        low, high = tl.where((low < high) & (ends_later == 0), middle + 1, low), tl.where(ends_later, middle, high)
    # From there, visit the spans that begin before the token ends. The largest overlap wins; in a tie the earlier span wins.
    span, most_covered, best_span = low, tl.zeros_like(low), tl.full((BLOCK,), -1, tl.int64)
    touched = (span < last) & (tl.load(starts + span, mask=span < last, other=0) < end)
    while tl.max(touched.to(tl.int32), axis=0) > 0:
        start = tl.load(starts + span, mask=touched, other=0).to(tl.int64)
        stop = tl.load(ends + span, mask=touched, other=0).to(tl.int64)
        covered = tl.minimum(stop, end) - tl.maximum(start, begin)
        better = touched & (covered > most_covered)
        most_covered, best_span = tl.where(better, covered, most_covered), tl.where(better, span, best_span)
        span += touched.to(tl.int64)
        touched = touched & (span < last)
        touched = touched & (tl.load(starts + span, mask=touched, other=0) < end)
    kind = tl.load(kinds + best_span, mask=best_span >= 0, other=0)
    if ids is not None:
        tl.store(ids + token, kind, mask=exists)
    if m_r is not None:
        tl.store(m_r + token, kind == REASON, mask=exists)
    if m_a is not None:
        tl.store(m_a + token, kind == ACT, mask=exists)


def span_ids_launch(
    offsets: Tensor,
    starts: Tensor,
    ends: Tensor,
    kinds: Tensor,
    row_splits: Tensor,
    ids: Tensor | None,
    m_r: Tensor | None,
    m_a: Tensor | None,
) -> Launch:
    """Returns the launch that fills `ids`, `m_r` and `m_a`, each (B, T) or None. All tensors are contiguous."""
    batch, tokens = offsets.shape[:2]
    values = {
        "offsets": offsets,
        "starts": starts,
        "ends": ends,
        "kinds": kinds,
        "row_splits": row_splits,
        "ids": ids,
        "m_r": m_r,
        "m_a": m_a,
        "n_tokens": batch * tokens,
        "row_tokens": tokens,
        "REASON": int(SpanKind.REASON),
        "ACT": int(SpanKind.ACT),
        "BLOCK": _BLOCK,
    }
    return Launch(span_ids_kernel, triton.cdiv(batch * tokens, _BLOCK), values, warps=_WARPS)


def span_ids_from_offsets(
    offsets: Tensor, starts: Tensor, ends: Tensor, kinds: Tensor, row_splits: Tensor, *, masks: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """See `sadkernels.reference.span_ids.span_ids_from_offsets`. `offsets`, `starts` and `ends` may also be int32."""
    outputs = [torch.empty(offsets.shape[:2], dtype=torch.bool if masks else torch.uint8, device=offsets.device)]
    if masks:
        outputs.append(torch.empty_like(outputs[0]))
    inputs = (x.contiguous() for x in (offsets, starts, ends, kinds, row_splits))
    if outputs[0].numel():  # a launch of no programs is an error
        span_ids_launch(*inputs, *((None, *outputs) if masks else (*outputs, None, None))).run(offsets.device)
    return tuple(outputs) if masks else outputs[0]
