"""The passes over a row of the top-k losses, and the targets that they exclude.

    rest_pass             the total of the rest; the argmax over all columns
    write_scaled_softmax  a multiple of the softmax, as the gradient of the tail; the entropy

The rest is every column that is neither in the teacher's top-k nor the label. The tail is every column outside the top-k.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from sadkernels.triton.row_io import load_edges, load_groups, only_if, round_to, split_row, store_edges, store_groups
from sadkernels.triton.softmax import (
    LOWEST,
    add_block,
    apply_softcap,
    log2_probabilities,
    mean_log2,
    merge_groups_and_edges,
    no_groups,
    origin_of,
    out_of_bounds,
    row_argmax,
    softcap_backward,
    track_argmax,
)

_ABSENT = tl.constexpr(2**31 - 1)  # as in `sadkernels.topk`


class Topk(NamedTuple):
    """The teacher's top-k of a row, as vectors of MAX_K lanes."""

    pointer: tl.tensor  # to the k columns, in ascending order
    k: tl.tensor
    column: tl.tensor  # _ABSENT in the lanes beyond k
    valid: tl.tensor  # whether the column exists and is not a repetition
    log_p: tl.tensor
    y: tl.tensor  # the student's logits there, after the soft cap


class Label(NamedTuple):
    """The label of a row."""

    column: tl.tensor  # -1 if the row has none
    in_tail: tl.tensor  # whether the row has a label outside the top-k
    y: tl.tensor  # the student's logit there, after the soft cap


class Totals(NamedTuple):
    """The sum of 2^((y - origin) c) over a set of columns. An empty set has the lowest origin."""

    origin: tl.tensor
    total: tl.tensor


@triton.jit
def totals_of(origin, total):
    """Returns the `Totals` of a total relative to `origin`."""
    return Totals(tl.where(total == 0.0, LOWEST, origin), total)


@triton.jit
def merge_two(a, b, c):
    """Returns the `Totals` of two disjoint sets together."""
    origin = tl.maximum(a.origin, b.origin)
    return Totals(origin, a.total * tl.exp2((a.origin - origin) * c) + b.total * tl.exp2((b.origin - origin) * c))


@triton.jit
def load_target(x_row, row, columns, log_p, labels, k, vocab_size, MAX_K: tl.constexpr):
    """Returns the `Topk` and the `Label` of a row."""
    pointer = columns + row.to(tl.int64) * k
    lane = tl.arange(0, MAX_K)
    column = tl.load(pointer + lane, mask=lane < k, other=_ABSENT)
    previous = tl.load(pointer + lane - 1, mask=(lane > 0) & (lane < k), other=-1)
    valid = (column < vocab_size) & (column != previous)
    topk_log_p = tl.load(log_p + row.to(tl.int64) * k + lane, mask=valid, other=float("-inf"))
    y = tl.load(x_row.pointer + column, mask=valid, other=float("-inf"))
    y = apply_softcap(y, x_row.tanh_scale, valid, x_row.CAPPED)
    label = tl.full((), -1, tl.int32)
    if labels is not None:
        label = tl.load(labels + row)
    in_tail = (label >= 0) & (tl.max((column == label).to(tl.int32), axis=0) == 0)
    label_y = tl.load(x_row.pointer + label, mask=label >= 0, other=float("-inf"))
    label_y = apply_softcap(label_y, x_row.tanh_scale, label >= 0, x_row.CAPPED)
    return Topk(pointer, k, column, valid, topk_log_p, y), Label(label, in_tail, label_y)


@triton.jit
def _bit(group, lane, GROUP: tl.constexpr):
    """Returns the bit of a lane of the block, in the number of its group; 0 for the other groups and for a negative lane."""
    SHIFT: tl.constexpr = 3 if GROUP == 8 else 2
    tl.static_assert(GROUP == 1 << SHIFT)
    return tl.where(group == lane >> SHIFT, 1 << (lane & (GROUP - 1)), 0)


@triton.jit
def _rest_pass(
    x_row,
    columns,
    topk,
    label,
    ARGMAX: tl.constexpr,
    EXACT: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Returns shift (top, if EXACT) and total of the rest, and the argmax over all columns.

    The top-k columns ascend, so each block excludes only its own columns. It sets their bits one after the other, in one
    number per group. Then it reads the bits of all columns.
    """
    parts = split_row(x_row.pointer, columns, GROUP)
    edges = load_edges(x_row.pointer, parts)
    shift, total = no_groups(GROUPS, EXACT)
    if ARGMAX:
        best = tl.full((GROUPS,), float("-inf"), tl.float32)
        best_column = tl.full((GROUPS,), 0, tl.int32)
    group = tl.arange(0, GROUPS)
    entry = 0
    excluded = tl.load(topk.pointer, mask=topk.k > 0, other=_ABSENT)
    following = tl.load(topk.pointer + 1, mask=topk.k > 1, other=_ABSENT)
    x_next = load_groups(x_row.pointer, parts, 0, True, "", GROUPS, GROUP)
    for block in range(tl.cdiv(parts.n_groups, GROUPS)):
        first = block * GROUPS
        x = x_next.to(tl.float32)
        x_next = load_groups(x_row.pointer, parts, first + GROUPS, True, "", GROUPS, GROUP)
        if ARGMAX:
            _, best, best_column = track_argmax(x, parts.head, first, best, best_column, GROUPS, GROUP)
        exists = (first + tl.arange(0, GROUPS) < parts.n_groups)[:, None]
        y = apply_softcap(x, x_row.tanh_scale, exists, x_row.CAPPED)
        block_start = parts.head + first * GROUP
        bits = _bit(group, label.column - block_start, GROUP)
        while excluded < block_start + GROUPS * GROUP:
            bits |= _bit(group, excluded - block_start, GROUP)
            excluded = following
            following = tl.load(topk.pointer + entry + 2, mask=entry + 2 < topk.k, other=_ABSENT)
            entry += 1
        y = tl.where((bits[:, None] & (1 << tl.arange(0, GROUP))[None, :]) != 0, float("-inf"), y)
        shift, total = add_block(y, tl.max(y, axis=1), x_row.c, shift, total, EXACT)
    argmax = 0
    if ARGMAX:
        _, argmax = row_argmax(best, best_column, edges, parts.edge_column)
    edges = apply_softcap(edges, x_row.tanh_scale, parts.edge_exists, x_row.CAPPED)
    in_topk = tl.max((parts.edge_column[:, None] == topk.column[None, :]).to(tl.int32), axis=1)
    edges = tl.where((in_topk != 0) | (parts.edge_column == label.column), float("-inf"), edges)
    row_shift, row_total = merge_groups_and_edges(shift, total, edges, x_row.c, EXACT)
    return row_shift, row_total, argmax


@triton.jit
def rest_pass(x_row, columns, topk, label, ARGMAX: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Returns the `Totals` of the columns that are neither in the top-k nor the label, and the argmax over all columns.

    If the exponents are too large for one pass, an exact pass follows.
    """
    shift, total, argmax = _rest_pass(x_row, columns, topk, label, ARGMAX, False, GROUPS, GROUP)
    origin = origin_of(shift, x_row.c)
    total *= tl.exp2(tl.fma(-origin, x_row.c, shift))
    if out_of_bounds(shift):
        origin, total, _ = _rest_pass(x_row, columns, topk, label, False, True, GROUPS, GROUP)
    return totals_of(origin, total), argmax


@triton.jit
def _scaled_softmax(y, c, divisor, factor, CAPPED: tl.constexpr, dtype: tl.constexpr):
    g = softcap_backward(tl.exp2(log2_probabilities(y, c, divisor)) * factor, y, CAPPED)
    return round_to(tl.where(factor == 0.0, 0.0, g), dtype)  # 0 also if q is NaN


@triton.jit
def write_scaled_softmax(
    x_row,
    grad_row,
    columns,
    divisor,
    factor,
    write,
    log_sum,
    ENTROPY: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Writes factor 2^((y - origin) c - log2_sum), through the soft cap, to every column of `grad_row`.

    `divisor` is the `LogSum` of origin and log2_sum. The pass writes nothing if `grad_row` is None or `write` is false. It
    reads each block before it writes it. Returns the sum of q log2 q, or 0 without ENTROPY.
    """
    parts = split_row(x_row.pointer, columns, GROUP)
    edges = load_edges(x_row.pointer, parts)
    if grad_row is not None:
        written = only_if(write, parts)
    if ENTROPY:
        log2_sum = tl.full((GROUPS,), 0.0, tl.float32)
    blocks = tl.cdiv(parts.n_groups, GROUPS)
    first = (blocks - 1) * GROUPS
    x_next = load_groups(x_row.pointer, parts, first, True, "evict_first", GROUPS, GROUP)
    for _ in range(blocks):
        exists = (first + tl.arange(0, GROUPS) < parts.n_groups)[:, None]
        y = apply_softcap(x_next, x_row.tanh_scale, exists, x_row.CAPPED)
        x_next = load_groups(x_row.pointer, parts, first - GROUPS, True, "evict_first", GROUPS, GROUP)
        if ENTROPY:
            log2_q = log2_probabilities(y, x_row.c, log_sum)
            log2_sum += mean_log2(tl.exp2(log2_q), log2_q)
        if grad_row is not None:
            g = _scaled_softmax(y, x_row.c, divisor, factor, x_row.CAPPED, grad_row.dtype.element_ty)
            store_groups(grad_row, written, first, g, GRAD_ALIGNED, GROUPS, GROUP)
        first -= GROUPS
    y = apply_softcap(edges, x_row.tanh_scale, parts.edge_exists, x_row.CAPPED)
    if grad_row is not None:
        g = _scaled_softmax(y, x_row.c, divisor, factor, x_row.CAPPED, grad_row.dtype.element_ty)
        store_edges(grad_row, written, g)
    row_log2_sum = 0.0
    if ENTROPY:
        log2_q = log2_probabilities(y, x_row.c, log_sum)
        row_log2_sum = tl.sum(log2_sum, axis=0) + mean_log2(tl.exp2(log2_q), log2_q)
    return row_log2_sum
