"""The passes over one pair of rows, or over the same slice of both: totals, divergence, gradient.

    totals_pass      shift and total of each softmax, and each row's argmax; the rows need not begin in step
    divergence_pass  the sums of the divergence and of the statistics; the gradient of forward_kl, which needs no more
    gradient_pass    the gradient, once E_q[G] is known

The student's groups rule where both rows are compared. A pass runs against the direction of the one before it, so that it
begins with what that one left in the caches; the pass that reads for the last time tells them to keep nothing. The edges of
a row are read before any of it is written: the gradient may lie where the student's logits are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sadkernels.triton.divergences import divergence_gradient, divergence_terms
from sadkernels.triton.row_io import cut_row, load_edges, load_groups, narrow, store_groups
from sadkernels.triton.softcap import as_compared, through_cap
from sadkernels.triton.softmax import (
    NO_SHIFT,
    add_groups,
    lowest_argmax,
    mean_log2,
    merge,
    probabilities,
    track_best,
)


@triton.jit
def totals_pass(
    s_row,
    t_row,
    columns,
    s_c,
    t_c,
    s_inner,
    t_inner,
    S_CAPPED: tl.constexpr,
    T_CAPPED: tl.constexpr,
    ARGMAX: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Shift and total of both rows, each read along its own aligned groups; with ARGMAX largest logit and its column."""
    s_head, s_groups, s_edge_column, s_edge_exists = cut_row(s_row, columns, GROUP)
    t_head, t_groups, t_edge_column, t_edge_exists = cut_row(t_row, columns, GROUP)
    s_edges = load_edges(s_row, s_edge_column, s_edge_exists)
    t_edges = load_edges(t_row, t_edge_column, t_edge_exists)
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
        first = block * GROUPS
        s = s_next.to(tl.float32)
        t = t_next.to(tl.float32)
        s_next = load_groups(s_row, s_head, first + GROUPS, s_groups, True, "", GROUPS, GROUP)
        t_next = load_groups(t_row, t_head, first + GROUPS, t_groups, True, "", GROUPS, GROUP)
        if ARGMAX:
            s_top, s_best, s_column = track_best(s, s_head, first, s_best, s_column, GROUPS, GROUP)
            t_top, t_best, t_column = track_best(t, t_head, first, t_best, t_column, GROUPS, GROUP)
        s = as_compared(s, s_inner, (first + tl.arange(0, GROUPS) < s_groups)[:, None], S_CAPPED)
        t = as_compared(t, t_inner, (first + tl.arange(0, GROUPS) < t_groups)[:, None], T_CAPPED)
        if S_CAPPED or not ARGMAX:
            s_top = tl.max(s, axis=1)
        if T_CAPPED or not ARGMAX:
            t_top = tl.max(t, axis=1)
        s_shift, s_total = add_groups(s, s_top, s_c, s_shift, s_total)
        t_shift, t_total = add_groups(t, t_top, t_c, t_shift, t_total)
    s_best_logit, s_argmax, t_best_logit, t_argmax = 0.0, 0, 0.0, 0
    if ARGMAX:
        s_best_logit, s_argmax = lowest_argmax(s_best, s_column, s_edges, s_edge_column)
        t_best_logit, t_argmax = lowest_argmax(t_best, t_column, t_edges, t_edge_column)
    s_edges = as_compared(s_edges, s_inner, s_edge_exists, S_CAPPED)
    t_edges = as_compared(t_edges, t_inner, t_edge_exists, T_CAPPED)
    s_row_shift, s_row_total = merge(s_shift, s_total, s_edges, s_c)
    t_row_shift, t_row_total = merge(t_shift, t_total, t_edges, t_c)
    return s_row_shift, s_row_total, t_row_shift, t_row_total, s_best_logit, s_argmax, t_best_logit, t_argmax


@triton.jit
def _compare(s, t, s_c, t_c, s_shift, s_inverse, t_shift, t_inverse, log_ratio):
    """Exponents, probabilities q and p, and r = log q - log p of matching columns; log_ratio = log(total_t / total_s)."""
    s_a, q = probabilities(s, s_c, s_shift, s_inverse)
    t_a, p = probabilities(t, t_c, t_shift, t_inverse)
    return s_a, t_a, q, p, tl.fma(s_a - t_a, 0.6931471805599453, log_ratio)  # ln 2; r is NaN where both are 0


@triton.jit
def divergence_pass(
    s_row,
    t_row,
    grad_row,
    columns,
    s_c,
    t_c,
    s_inner,
    t_inner,
    s_shift,
    s_inverse,
    t_shift,
    t_inverse,
    weight,
    grad_scale,
    beta,
    DIVERGENCE: tl.constexpr,
    S_CAPPED: tl.constexpr,
    T_CAPPED: tl.constexpr,
    ENTROPIES: tl.constexpr,
    READ_AGAIN: tl.constexpr,
    TEACHER_ALIGNED: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The rows' value, E_q[G], and sums of p log2 p of teacher and student; with a `grad_row` the gradient of forward_kl.

    READ_AGAIN says that a gradient pass follows.
    """
    tl.static_assert(grad_row is None or DIVERGENCE == "forward_kl", "the gradient needs E_q[G]")
    EVICTION: tl.constexpr = "" if READ_AGAIN else "evict_first"
    head, groups, edge_column, edge_exists = cut_row(s_row, columns, GROUP)
    s_edges = load_edges(s_row, edge_column, edge_exists)
    t_edges = load_edges(t_row, edge_column, edge_exists)
    log_ratio = tl.log(s_inverse / t_inverse)
    factor = weight * grad_scale
    value_sum = tl.full((GROUPS,), 0.0, tl.float32)
    if DIVERGENCE == "jsd":
        pull_sum = tl.full((GROUPS,), 0.0, tl.float32)
    if ENTROPIES:
        s_log2 = tl.log2(s_inverse)
        t_log2 = tl.log2(t_inverse)
        s_sum = tl.full((GROUPS,), 0.0, tl.float32)
        t_sum = tl.full((GROUPS,), 0.0, tl.float32)
    blocks = tl.cdiv(groups, GROUPS)
    first = (blocks - 1) * GROUPS
    s_next = load_groups(s_row, head, first, groups, True, EVICTION, GROUPS, GROUP)
    t_next = load_groups(t_row, head, first, groups, TEACHER_ALIGNED, EVICTION, GROUPS, GROUP)
    for _ in range(blocks):
        exists = (first + tl.arange(0, GROUPS) < groups)[:, None]
        s = as_compared(s_next, s_inner, exists, S_CAPPED)
        t = as_compared(t_next, t_inner, exists, T_CAPPED)
        s_next = load_groups(s_row, head, first - GROUPS, groups, True, EVICTION, GROUPS, GROUP)
        t_next = load_groups(t_row, head, first - GROUPS, groups, TEACHER_ALIGNED, EVICTION, GROUPS, GROUP)
        s_a, t_a, q, p, r = _compare(s, t, s_c, t_c, s_shift, s_inverse, t_shift, t_inverse, log_ratio)
        terms, of_student = divergence_terms(q, p, r, beta, DIVERGENCE)
        value_sum += tl.sum(terms, axis=1)
        if DIVERGENCE == "jsd":
            pull_sum += tl.sum(of_student, axis=1)
        if grad_row is not None:
            g = through_cap((q - p) * factor, s, S_CAPPED)
            g = narrow(tl.where(weight != 0.0, g, 0.0), grad_row.dtype.element_ty)
            store_groups(grad_row, head, first, groups, g, GRAD_ALIGNED, GROUPS, GROUP)
        if ENTROPIES:
            s_sum += mean_log2(q, s_a, s_log2)
            t_sum += mean_log2(p, t_a, t_log2)
        first -= GROUPS
    s = as_compared(s_edges, s_inner, edge_exists, S_CAPPED)
    t = as_compared(t_edges, t_inner, edge_exists, T_CAPPED)
    s_a, t_a, q, p, r = _compare(s, t, s_c, t_c, s_shift, s_inverse, t_shift, t_inverse, log_ratio)
    terms, of_student = divergence_terms(q, p, r, beta, DIVERGENCE)
    value = tl.sum(value_sum, axis=0) + tl.sum(terms, axis=0)
    mean_pull = 0.0
    if DIVERGENCE == "jsd":
        mean_pull = tl.sum(pull_sum, axis=0) + tl.sum(of_student, axis=0)
    elif DIVERGENCE == "reverse_kl":
        mean_pull = value
    if grad_row is not None:
        g = through_cap((q - p) * factor, s, S_CAPPED)
        g = narrow(tl.where(weight != 0.0, g, 0.0), grad_row.dtype.element_ty)
        tl.store(grad_row + edge_column, g, mask=edge_exists)
    s_mean_log2, t_mean_log2 = 0.0, 0.0
    if ENTROPIES:
        s_mean_log2 = tl.sum(s_sum, axis=0) + mean_log2(q, s_a, s_log2)
        t_mean_log2 = tl.sum(t_sum, axis=0) + mean_log2(p, t_a, t_log2)
    return value, mean_pull, t_mean_log2, s_mean_log2


@triton.jit
def gradient_pass(
    s_row,
    t_row,
    grad_row,
    columns,
    s_c,
    t_c,
    s_inner,
    t_inner,
    s_shift,
    s_inverse,
    t_shift,
    t_inverse,
    mean_pull,
    factor,
    beta,
    DIVERGENCE: tl.constexpr,
    S_CAPPED: tl.constexpr,
    T_CAPPED: tl.constexpr,
    TEACHER_ALIGNED: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Writes `factor` times T d value / d z_student, through the cap: every block is read before it is written."""
    head, groups, edge_column, edge_exists = cut_row(s_row, columns, GROUP)
    s_edges = load_edges(s_row, edge_column, edge_exists)
    t_edges = load_edges(t_row, edge_column, edge_exists)
    log_ratio = tl.log(s_inverse / t_inverse)
    s_next = load_groups(s_row, head, 0, groups, True, "evict_first", GROUPS, GROUP)
    t_next = load_groups(t_row, head, 0, groups, TEACHER_ALIGNED, "evict_first", GROUPS, GROUP)
    for block in range(tl.cdiv(groups, GROUPS)):
        first = block * GROUPS
        exists = (first + tl.arange(0, GROUPS) < groups)[:, None]
        s = as_compared(s_next, s_inner, exists, S_CAPPED)
        t = as_compared(t_next, t_inner, exists, T_CAPPED)
        s_next = load_groups(s_row, head, first + GROUPS, groups, True, "evict_first", GROUPS, GROUP)
        t_next = load_groups(t_row, head, first + GROUPS, groups, TEACHER_ALIGNED, "evict_first", GROUPS, GROUP)
        _, _, q, p, r = _compare(s, t, s_c, t_c, s_shift, s_inverse, t_shift, t_inverse, log_ratio)
        g = divergence_gradient(q, p, r, mean_pull, beta, DIVERGENCE)
        g = narrow(through_cap(g * factor, s, S_CAPPED), grad_row.dtype.element_ty)
        store_groups(grad_row, head, first, groups, g, GRAD_ALIGNED, GROUPS, GROUP)
    s = as_compared(s_edges, s_inner, edge_exists, S_CAPPED)
    t = as_compared(t_edges, t_inner, edge_exists, T_CAPPED)
    _, _, q, p, r = _compare(s, t, s_c, t_c, s_shift, s_inverse, t_shift, t_inverse, log_ratio)
    g = divergence_gradient(q, p, r, mean_pull, beta, DIVERGENCE)
    g = narrow(through_cap(g * factor, s, S_CAPPED), grad_row.dtype.element_ty)
    tl.store(grad_row + edge_column, g, mask=edge_exists)
