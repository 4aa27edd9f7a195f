"""The passes over a pair of rows that need the fewest instructions per column. They serve all rows without unusual values.

    fast_totals_pass      shift and total of each softmax, and the argmax and the lowest logit of each row
    fast_divergence_pass  sums of the divergence and of the statistics of 16-bit logits; for forward_kl also the gradient

The loops process whole blocks, so they need no masks. The groups that remain form a partial block, which comes before the
loop: at the start of the row if the loop goes forward, at its end if the loop goes backward. A loop loads the next block
while it computes.

`fast_totals_pass` only notes in which block each thread has its largest logit. After the loop, the threads whose logit is
the largest of the row read this group again and find the column.

`fast_divergence_pass` computes an exponent with one instruction:

    log2 q = y c - offset - rest    with offset + rest = origin c + log2_sum

The offset is rounded to float32, and the rest is so small that it changes only the sums and the factor of the gradient. This
needs finite logits with exponents below 2^26. The terms have short polynomials, because the value of 16-bit logits needs a
relative accuracy of only 1e-4.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from sadkernels.triton.divergences import fast_divergence_terms
from sadkernels.triton.row_io import (
    block_pointers,
    group_max,
    load_block,
    load_edges,
    load_partial_block,
    no_minimum,
    only_if,
    positive,
    round_to,
    row_minimum,
    split_row,
    store_block,
    store_edges,
    store_groups,
    to_float32,
    track_minimum,
)
from sadkernels.triton.softmax import (
    add_ordinary_block,
    apply_softcap,
    merge_groups_and_edges,
    no_groups,
    tanh,
)

_LN2 = tl.constexpr(0.6931471805599453)
_NO_COLUMN = tl.constexpr(2**31 - 1)


class FastTotals(NamedTuple):
    """Shift and total of a row or slice, its lowest logit, and with ARGMAX its largest logit and the lowest column of it."""

    shift: tl.tensor
    total: tl.tensor
    lowest: tl.tensor
    best: tl.tensor
    argmax: tl.tensor


class RowSums(NamedTuple):
    """Sums over the columns of a row or slice: divergence, E_q[dlogp], p log2 p, q log2 q."""

    value: tl.tensor
    mean_dlogp: tl.tensor
    teacher_mean_log2: tl.tensor
    student_mean_log2: tl.tensor


class _Totals(NamedTuple):
    """The running totals of each group, (GROUPS,) each. `best_first` is the first group of the block with `best`."""

    shift: tl.tensor
    total: tl.tensor
    lowest: tl.tensor
    best: tl.tensor
    best_first: tl.tensor


class _Exponents(NamedTuple):
    """log2 q = y c - offset - rest; see the module docstring."""

    c: tl.tensor
    offset: tl.tensor
    rest: tl.tensor


@triton.jit
def _add_block(
    totals, x, exists, row, first, ARGMAX: tl.constexpr, LOWEST: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr
):
    """Returns the totals with a block x of `load_block` added. `exists` (GROUPS, 1) is None for a whole block."""
    y = to_float32(x, GROUPS, GROUP)
    top = group_max(x, y)
    lowest, best, best_first = totals.lowest, totals.best, totals.best_first
    if LOWEST:
        if exists is None:
            lowest = track_minimum(lowest, x, y)
        else:
            lowest = track_minimum(lowest, tl.where(exists, x, 0), tl.where(exists, y, 0.0))
    if ARGMAX:
        best_first = tl.where(top > best, first, best_first)
        best = tl.maximum(best, top)
    if row.CAPPED:
        y = tanh(y * row.tanh_scale)
        if exists is not None:
            y = tl.where(exists, y, float("-inf"))
        top = tl.max(y, axis=1)
    shift, total = add_ordinary_block(y, top, row.c, totals.shift, totals.total)
    return _Totals(shift, total, lowest, best, best_first)


@triton.jit
def _partial_totals(
    pointers, n_groups, row, ARGMAX: tl.constexpr, LOWEST: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr
):
    """Returns the totals of the first `n_groups` groups, which are at most a block."""
    exists = (tl.arange(0, GROUPS) < n_groups)[:, None]
    x = load_partial_block(pointers, 0, exists, "")
    shift, total = no_groups(GROUPS, False)
    best = tl.full((GROUPS,), float("-inf"), tl.float32)
    nothing = _Totals(shift, total, no_minimum(x, GROUPS), best, tl.full((GROUPS,), 0, tl.int32))
    return _add_block(nothing, x, exists, row, 0, ARGMAX, LOWEST, GROUPS, GROUP)


@triton.jit
def _row_totals(
    totals,
    pointers,
    parts,
    edges,
    row,
    ARGMAX: tl.constexpr,
    LOWEST: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Returns the `FastTotals` of a row from those of its groups and its edges."""
    lowest, best, column = 0.0, 0.0, 0
    if LOWEST:
        lowest = tl.minimum(row_minimum(totals.lowest), tl.min(tl.where(parts.edge_exists, edges, 0.0), axis=0))
    if ARGMAX:
        best = tl.maximum(tl.max(totals.best, axis=0), tl.max(edges, axis=0))
        found = load_partial_block(pointers, totals.best_first[:, None], (totals.best == best)[:, None], "")
        group = totals.best_first + tl.arange(0, GROUPS)
        columns = parts.head + group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        columns = tl.where(to_float32(found, GROUPS, GROUP) == best, columns, _NO_COLUMN)
        edge_columns = tl.where(edges == best, parts.edge_column, _NO_COLUMN)
        column = tl.minimum(tl.min(tl.min(columns, axis=1), axis=0), tl.min(edge_columns, axis=0))
    edges = apply_softcap(edges, row.tanh_scale, parts.edge_exists, row.CAPPED)
    shift, total = merge_groups_and_edges(totals.shift, totals.total, edges, row.c, False)
    return FastTotals(shift, total, lowest, best, column)


@triton.jit
def fast_totals_pass(
    student,
    teacher,
    columns,
    ARGMAX: tl.constexpr,
    LOWEST: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Returns the `FastTotals` of two `LogitRow`s, each read along its own aligned groups.

    Totals and argmax are undefined if a shift is `out_of_bounds` or a total is NaN. The lowest logit is at most 0.
    """
    s_parts = split_row(student.pointer, columns, GROUP)
    t_parts = split_row(teacher.pointer, columns, GROUP)
    s_pointers = block_pointers(student.pointer, s_parts, True, GROUPS, GROUP)
    t_pointers = block_pointers(teacher.pointer, t_parts, True, GROUPS, GROUP)
    s_edges = load_edges(student.pointer, s_parts)
    t_edges = load_edges(teacher.pointer, t_parts)
    # The numbers of groups differ by at most 1, so the partial blocks have at most GROUPS groups
    blocks = tl.minimum(s_parts.n_groups, t_parts.n_groups) // GROUPS
    s_first, t_first = s_parts.n_groups - blocks * GROUPS, t_parts.n_groups - blocks * GROUPS
    s_next = load_block(s_pointers, s_first, positive(blocks), "")
    t_next = load_block(t_pointers, t_first, positive(blocks), "")
    s_totals = _partial_totals(s_pointers, s_first, student, ARGMAX, LOWEST, GROUPS, GROUP)
    t_totals = _partial_totals(t_pointers, t_first, teacher, ARGMAX, LOWEST, GROUPS, GROUP)
    for block in range(blocks):
        s, t = s_next, t_next
        s_next = load_block(s_pointers, s_first + GROUPS, positive(blocks - 1 - block), "")
        t_next = load_block(t_pointers, t_first + GROUPS, positive(blocks - 1 - block), "")
        s_totals = _add_block(s_totals, s, None, student, s_first, ARGMAX, LOWEST, GROUPS, GROUP)
        t_totals = _add_block(t_totals, t, None, teacher, t_first, ARGMAX, LOWEST, GROUPS, GROUP)
        s_first += GROUPS
        t_first += GROUPS
    return (
        _row_totals(s_totals, s_pointers, s_parts, s_edges, student, ARGMAX, LOWEST, GROUPS, GROUP),
        _row_totals(t_totals, t_pointers, t_parts, t_edges, teacher, ARGMAX, LOWEST, GROUPS, GROUP),
    )


@triton.jit
def _exponents(log_sum, c):
    offset = tl.fma(log_sum.origin, c, log_sum.log2_sum)
    return _Exponents(c, offset, tl.fma(log_sum.origin, c, -offset) + log_sum.log2_sum)


@triton.jit
def _add_products(total, a, b, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Adds a b, both (GROUPS, GROUP), to the running sums (GROUPS, GROUP / 2), one instruction per product."""
    a_low, a_high = tl.split(tl.reshape(a, (GROUPS, GROUP // 2, 2)))
    b_low, b_high = tl.split(tl.reshape(b, (GROUPS, GROUP // 2, 2)))
    return tl.fma(a_high, b_high, tl.fma(a_low, b_low, total))


@triton.jit
def _compare(s, t, student, teacher):
    """Returns log2 q, log2 p, q and p without the rests, r = log q - log p, and q - p in the scale of p."""
    log2_q = tl.fma(s, student.c, -student.offset)
    log2_p = tl.fma(t, teacher.c, -teacher.offset)
    q, p = tl.exp2(log2_q), tl.exp2(log2_p)
    rest = teacher.rest - student.rest
    return log2_q, log2_p, q, p, tl.fma(log2_q - log2_p, _LN2, rest * _LN2), tl.fma(q, tl.exp2(rest), -p)


@triton.jit
def _rounded(d, factor, grad):
    return round_to(d * factor, grad.pointer.dtype.element_ty)


@triton.jit
def fast_divergence_pass(
    student,
    teacher,
    s_log_sum,
    t_log_sum,
    columns,
    grad,
    mixture,
    DIVERGENCE: tl.constexpr,
    ENTROPIES: tl.constexpr,
    GRAD_LATER: tl.constexpr,
    TEACHER_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Returns the `RowSums` of two `LogitRow`s; also writes the gradient of forward_kl if the `GradRow` has a pointer.

    It writes no gradient if the row's weight is 0. GRAD_LATER: a gradient pass follows, which reads the rows again.
    """
    WRITE_GRAD: tl.constexpr = grad.pointer is not None and not GRAD_LATER
    EVICTION: tl.constexpr = "" if GRAD_LATER else "evict_first"
    s_exp, t_exp = _exponents(s_log_sum, student.c), _exponents(t_log_sum, teacher.c)
    p_scale = tl.exp2(-t_exp.rest)
    factor = grad.weight * grad.scale * p_scale
    parts = split_row(student.pointer, columns, GROUP)
    written = only_if(grad.weight != 0.0, parts)
    s_pointers = block_pointers(student.pointer, parts, True, GROUPS, GROUP)
    t_pointers = block_pointers(teacher.pointer, parts, TEACHER_ALIGNED, GROUPS, GROUP)
    s_edges = load_edges(student.pointer, parts)
    t_edges = load_edges(teacher.pointer, parts)
    blocks = parts.n_groups // GROUPS
    first = blocks * GROUPS
    exists = (first + tl.arange(0, GROUPS) < parts.n_groups)[:, None]
    s_next = load_partial_block(s_pointers, first, exists, EVICTION)
    t_next = load_partial_block(t_pointers, first, exists, EVICTION)

    log2_q, log2_p, q, p, r, d = _compare(s_edges, t_edges, s_exp, t_exp)
    terms = tl.where(parts.edge_exists, fast_divergence_terms(p, r, d, DIVERGENCE), 0.0)
    edges_value = tl.sum(terms, axis=0)
    if WRITE_GRAD:
        g_edges = _rounded(d, factor, grad)
    if ENTROPIES:
        s_edges_sum = tl.sum(tl.where(parts.edge_exists, q * log2_q, 0.0), axis=0)
        t_edges_sum = tl.sum(tl.where(parts.edge_exists, p * log2_p, 0.0), axis=0)

    s = to_float32(s_next, GROUPS, GROUP)
    t = to_float32(t_next, GROUPS, GROUP)
    s_next = load_block(s_pointers, first - GROUPS, positive(blocks), EVICTION)
    t_next = load_block(t_pointers, first - GROUPS, positive(blocks), EVICTION)
    log2_q, log2_p, q, p, r, d = _compare(s, t, s_exp, t_exp)
    value_sum = tl.sum(tl.where(exists, fast_divergence_terms(p, r, d, DIVERGENCE), 0.0), axis=1)
    if WRITE_GRAD:
        store_groups(grad.pointer, written, first, _rounded(d, factor, grad), grad.ALIGNED, GROUPS, GROUP)
    if ENTROPIES:
        zeros = tl.full((GROUPS, GROUP // 2), 0.0, tl.float32)
        s_sum = _add_products(zeros, q, tl.where(exists, log2_q, 0.0), GROUPS, GROUP)
        t_sum = _add_products(zeros, p, tl.where(exists, log2_p, 0.0), GROUPS, GROUP)
    for _ in range(blocks):
        first -= GROUPS
        s = to_float32(s_next, GROUPS, GROUP)
        t = to_float32(t_next, GROUPS, GROUP)
        s_next = load_block(s_pointers, first - GROUPS, positive(first), EVICTION)
        t_next = load_block(t_pointers, first - GROUPS, positive(first), EVICTION)
        log2_q, log2_p, q, p, r, d = _compare(s, t, s_exp, t_exp)
        value_sum += tl.sum(fast_divergence_terms(p, r, d, DIVERGENCE), axis=1)
        if WRITE_GRAD:
            g = _rounded(d, factor, grad)
            store_block(grad.pointer, parts, first, g, positive(written.n_groups), grad.ALIGNED, GROUPS, GROUP)
        if ENTROPIES:
            s_sum = _add_products(s_sum, q, log2_q, GROUPS, GROUP)
            t_sum = _add_products(t_sum, p, log2_p, GROUPS, GROUP)
    value = p_scale * (tl.sum(value_sum, axis=0) + edges_value)
    if WRITE_GRAD:  # after the sum over all threads, so that in place all of them have read the edges
        store_edges(grad.pointer, written, g_edges)
    value = tl.where(value < 0.0, 0.0, value)  # the rounding of d, if all terms are tiny; NaN stays NaN
    s_mean_log2, t_mean_log2 = 0.0, 0.0
    if ENTROPIES:
        s_mean_log2 = tl.fma(tl.exp2(-s_exp.rest), tl.sum(tl.sum(s_sum, axis=1), axis=0) + s_edges_sum, -s_exp.rest)
        t_mean_log2 = tl.fma(p_scale, tl.sum(tl.sum(t_sum, axis=1), axis=0) + t_edges_sum, -t_exp.rest)
    mean_dlogp = value if DIVERGENCE == "reverse_kl" else 0.0
    return RowSums(value, mean_dlogp, t_mean_log2, s_mean_log2)
