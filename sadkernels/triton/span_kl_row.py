"""One row of the span KL, passed over twice: once for the two log-sum-exps, once for KL, statistics and gradient.

The second pass runs backwards, so that it begins with what the first one left in the caches; it reads for the last time, so
it tells them to keep nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sadkernels.triton.row_io import cut_row, load_edges, load_groups, narrow, store_groups
from sadkernels.triton.softmax import (
    NO_SHIFT,
    add_groups,
    compare,
    entropy,
    expected_exponent,
    log_sum_exp,
    lowest_argmax,
    merge,
    track_best,
)


@triton.jit
def _first_pass(
    s_row, t_row, s_edges, t_edges, vocab_size, c, ARGMAX: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr
):
    """Shift and total of both rows, each read along its own aligned groups; with ARGMAX, 1 where theirs agree."""
    s_head, s_groups, s_edge_column, _ = cut_row(s_row, vocab_size, GROUP)
    t_head, t_groups, t_edge_column, _ = cut_row(t_row, vocab_size, GROUP)
    s_shift = tl.full((GROUPS,), NO_SHIFT, tl.float32)
    t_shift = tl.full((GROUPS,), NO_SHIFT, tl.float32)
    s_total = tl.full((GROUPS,), 0.0, tl.float32)
    t_total = tl.full((GROUPS,), 0.0, tl.float32)
    if ARGMAX:
        s_best = tl.full((GROUPS,), float("-inf"), tl.float32)
        t_best = tl.full((GROUPS,), float("-inf"), tl.float32)
        s_column = tl.full((GROUPS,), 0, tl.int32)
        t_column = tl.full((GROUPS,), 0, tl.int32)
    s_next = load_groups(s_row, s_head, 0, s_groups, True, "", GROUPS, GROUP)
    t_next = load_groups(t_row, t_head, 0, t_groups, True, "", GROUPS, GROUP)
    for block in range(tl.cdiv(tl.maximum(s_groups, t_groups), GROUPS)):
        s = s_next.to(tl.float32)
        t = t_next.to(tl.float32)
        s_next = load_groups(s_row, s_head, (block + 1) * GROUPS, s_groups, True, "", GROUPS, GROUP)
        t_next = load_groups(t_row, t_head, (block + 1) * GROUPS, t_groups, True, "", GROUPS, GROUP)
        if ARGMAX:
            s_top, s_best, s_column = track_best(s, s_head, block * GROUPS, s_best, s_column, GROUPS, GROUP)
            t_top, t_best, t_column = track_best(t, t_head, block * GROUPS, t_best, t_column, GROUPS, GROUP)
        else:
            s_top = tl.max(s, axis=1)
            t_top = tl.max(t, axis=1)
        s_shift, s_total = add_groups(s, s_top, c, s_shift, s_total)
        t_shift, t_total = add_groups(t, t_top, c, t_shift, t_total)
    s_row_shift, s_row_total = merge(s_shift, s_total, s_edges, c)
    t_row_shift, t_row_total = merge(t_shift, t_total, t_edges, c)
    agree = 0.0
    if ARGMAX:
        s_argmax = lowest_argmax(s_best, s_column, s_edges, s_edge_column)
        t_argmax = lowest_argmax(t_best, t_column, t_edges, t_edge_column)
        agree = (s_argmax == t_argmax).to(tl.float32)
    return s_row_shift, s_row_total, t_row_shift, t_row_total, agree


@triton.jit
def read_row(
    row,
    s_row,
    t_row,
    grad_row,
    weight,
    kl,
    lse,
    extras,
    n_rows,
    vocab_size,
    c,
    inverse_temperature,
    TEACHER_ALIGNED: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Everything about one row; its gradient over the first `vocab_size` columns."""
    # The student's groups rule the second pass. Its edges are read before anything is written: `grad` may be the student.
    head, groups, edge_column, edge_exists = cut_row(s_row, vocab_size, GROUP)
    _, _, t_edge_column, t_edge_exists = cut_row(t_row, vocab_size, GROUP)
    s_edges = load_edges(s_row, edge_column, edge_exists)
    t_edges = load_edges(t_row, t_edge_column, t_edge_exists)
    s_shift, s_total, t_shift, t_total, agree = _first_pass(
        s_row, t_row, s_edges, t_edges, vocab_size, c, extras is not None, GROUPS, GROUP
    )
    s_inverse = 1.0 / s_total
    t_inverse = 1.0 / t_total
    log_ratio = tl.log(t_total / s_total)
    factor = weight * inverse_temperature

    kl_sum = tl.full((GROUPS,), 0.0, tl.float32)
    if extras is not None:
        s_mean = tl.full((GROUPS,), 0.0, tl.float32)
        t_mean = tl.full((GROUPS,), 0.0, tl.float32)
    blocks = tl.cdiv(groups, GROUPS)
    first = (blocks - 1) * GROUPS
    s_next = load_groups(s_row, head, first, groups, True, "evict_first", GROUPS, GROUP)
    t_next = load_groups(t_row, head, first, groups, TEACHER_ALIGNED, "evict_first", GROUPS, GROUP)
    for _ in range(blocks):
        s = s_next.to(tl.float32)
        t = t_next.to(tl.float32)
        s_next = load_groups(s_row, head, first - GROUPS, groups, True, "evict_first", GROUPS, GROUP)
        t_next = load_groups(t_row, head, first - GROUPS, groups, TEACHER_ALIGNED, "evict_first", GROUPS, GROUP)
        s_a, t_a, q, p, terms = compare(s, t, c, s_shift, s_inverse, t_shift, t_inverse, log_ratio)
        kl_sum += tl.sum(terms, axis=1)
        if grad_row is not None:
            g = narrow(tl.where(weight != 0.0, (q - p) * factor, 0.0), grad_row.dtype.element_ty)
            store_groups(grad_row, head, first, groups, g, GRAD_ALIGNED, GROUPS, GROUP)
        if extras is not None:
            s_mean += expected_exponent(q, s_a)
            t_mean += expected_exponent(p, t_a)
        first -= GROUPS

    if not TEACHER_ALIGNED:  # so far the edges of the teacher's own groups
        t_edges = load_edges(t_row, edge_column, edge_exists)
    s_a, t_a, q, p, terms = compare(s_edges, t_edges, c, s_shift, s_inverse, t_shift, t_inverse, log_ratio)
    tl.store(kl + row, tl.sum(kl_sum, axis=0) + tl.sum(terms, axis=0))
    if grad_row is not None:
        g = narrow(tl.where(weight != 0.0, (q - p) * factor, 0.0), grad_row.dtype.element_ty)
        tl.store(grad_row + edge_column, g, mask=edge_exists)
    if lse is not None:
        tl.store(lse + row, log_sum_exp(s_shift, s_total))
        tl.store(lse + n_rows + row, log_sum_exp(t_shift, t_total))
    if extras is not None:
        tl.store(extras + row, entropy(t_total, tl.sum(t_mean, axis=0) + expected_exponent(p, t_a)))
        tl.store(extras + n_rows + row, entropy(s_total, tl.sum(s_mean, axis=0) + expected_exponent(q, s_a)))
        tl.store(extras + 2 * n_rows + row, agree)
