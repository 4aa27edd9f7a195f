"""The passes over a row some of whose columns are taken out: the total of the others, and a gradient that follows q.

rest_pass    shift and total of the columns that are not taken, and the row's argmax
spread_pass  one number times 2^(a - shift) into every column, taken ones too; and the row's entropy
"""

from __future__ import annotations

import triton
import triton.language as tl

from sadkernels.triton.row_io import cut_row, load_edges, load_groups, narrow, store_groups
from sadkernels.triton.softcap import as_compared, through_cap
from sadkernels.triton.softmax import NO_SHIFT, add_groups, lowest_argmax, mean_log2, merge, probabilities, track_best

ABSENT = tl.constexpr(2**31 - 1)  # as in `sadkernels.topk`


@triton.jit
def rest_pass(
    row,
    columns,
    listed,
    n_listed,
    listed_columns,
    label,
    c,
    inner,
    CAPPED: tl.constexpr,
    ARGMAX: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Shift and total of the columns that are neither listed nor the label, and the argmax over all.

    `listed` points to the row's columns in ascending order, so that each block meets its own alone, one after the other;
    `listed_columns` are the same as a vector.
    """
    head, groups, edge_column, edge_exists = cut_row(row, columns, GROUP)
    edges = load_edges(row, edge_column, edge_exists)
    shift = tl.full((GROUPS,), NO_SHIFT, tl.float32)
    total = tl.full((GROUPS,), 0.0, tl.float32)
    if ARGMAX:
        best = tl.full((GROUPS,), float("-inf"), tl.float32)
        best_column = tl.full((GROUPS,), 0, tl.int32)
    lanes = tl.arange(0, GROUPS)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    entry = 0
    taken = tl.load(listed, mask=n_listed > 0, other=ABSENT)
    x_next = load_groups(row, head, 0, groups, True, "", GROUPS, GROUP)
    for block in range(tl.cdiv(groups, GROUPS)):
        first = block * GROUPS
        x = x_next.to(tl.float32)
        x_next = load_groups(row, head, first + GROUPS, groups, True, "", GROUPS, GROUP)
        if ARGMAX:
            _, best, best_column = track_best(x, head, first, best, best_column, GROUPS, GROUP)
        x = as_compared(x, inner, (first + tl.arange(0, GROUPS) < groups)[:, None], CAPPED)
        here = head + first * GROUP
        x = tl.where(lanes == label - here, float("-inf"), x)
        while taken < here + GROUPS * GROUP:
            x = tl.where(lanes == taken - here, float("-inf"), x)
            entry += 1
            taken = tl.load(listed + entry, mask=entry < n_listed, other=ABSENT)
        shift, total = add_groups(x, tl.max(x, axis=1), c, shift, total)
    argmax = 0
    if ARGMAX:
        _, argmax = lowest_argmax(best, best_column, edges, edge_column)
    edges = as_compared(edges, inner, edge_exists, CAPPED)
    in_list = tl.max((edge_column[:, None] == listed_columns[None, :]).to(tl.int32), axis=1)
    edges = tl.where((in_list != 0) | (edge_column == label), float("-inf"), edges)
    row_shift, row_total = merge(shift, total, edges, c)
    return row_shift, row_total, argmax


@triton.jit
def _spread(x, c, shift, factor, CAPPED: tl.constexpr, dtype: tl.constexpr):
    g = through_cap(tl.exp2(tl.fma(x, c, -shift)) * factor, x, CAPPED)
    return narrow(tl.where(factor != 0.0, g, 0.0), dtype)


@triton.jit
def spread_pass(
    row,
    grad_row,
    columns,
    c,
    inner,
    shift,
    factor,
    row_shift,
    row_inverse,
    CAPPED: tl.constexpr,
    ENTROPY: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """factor 2^(a - shift), through the cap, to every column of `grad_row`, if there is one; sum of q log2 q, if wanted.

    Every block is read before it is written.
    """
    head, groups, edge_column, edge_exists = cut_row(row, columns, GROUP)
    edges = load_edges(row, edge_column, edge_exists)
    if ENTROPY:
        log2_inverse = tl.log2(row_inverse)
        log2_sum = tl.full((GROUPS,), 0.0, tl.float32)
    blocks = tl.cdiv(groups, GROUPS)
    first = (blocks - 1) * GROUPS
    x_next = load_groups(row, head, first, groups, True, "evict_first", GROUPS, GROUP)
    for _ in range(blocks):
        x = as_compared(x_next, inner, (first + tl.arange(0, GROUPS) < groups)[:, None], CAPPED)
        x_next = load_groups(row, head, first - GROUPS, groups, True, "evict_first", GROUPS, GROUP)
        if ENTROPY:
            a, q = probabilities(x, c, row_shift, row_inverse)
            log2_sum += mean_log2(q, a, log2_inverse)
        if grad_row is not None:
            g = _spread(x, c, shift, factor, CAPPED, grad_row.dtype.element_ty)
            store_groups(grad_row, head, first, groups, g, GRAD_ALIGNED, GROUPS, GROUP)
        first -= GROUPS
    x = as_compared(edges, inner, edge_exists, CAPPED)
    if grad_row is not None:
        g = _spread(x, c, shift, factor, CAPPED, grad_row.dtype.element_ty)
        tl.store(grad_row + edge_column, g, mask=edge_exists)
    sum_log2 = 0.0
    if ENTROPY:
        a, q = probabilities(x, c, row_shift, row_inverse)
        sum_log2 = tl.sum(log2_sum, axis=0) + mean_log2(q, a, log2_inverse)
    return sum_log2
