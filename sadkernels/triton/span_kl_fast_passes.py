"""The later passes over a pair of rows of 16-bit logits, with few instructions per column. They serve ordinary rows.

    fast_divergence_pass  sums of the divergence and of the statistics; for forward_kl also the gradient
    fast_gradient_pass    the gradient of reverse_kl and jsd, once E_q[dlogp] is known

As in `span_kl_fast_totals`, the loops process whole blocks, after a partial block. It is at the end of the row if the loop
goes backward. The edges come first: their sums are the start of the running sums, so no register holds them in the loop.

An exponent takes one instruction:

    log2 q = y c - offset - rest    with offset + rest = origin c + log2_sum

The offset is rounded to float32, and the rest is so small that it changes only the sums and the factor of the gradient. This
needs finite logits with exponents below 2^26. The terms have short polynomials, because the value of 16-bit logits needs a
relative accuracy of only 1e-4.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from sadkernels.triton.divergences import fast_jsd_terms, fast_kl_terms, fast_log_mixture_ratio, jsd_series
from sadkernels.triton.row_io import (
    block_pointers,
    halves,
    load_block,
    load_edges,
    load_partial_block,
    only_if,
    positive,
    round_to,
    split_row,
    store_block,
    store_edges,
    store_groups,
    to_float32,
)
from sadkernels.triton.softmax import SHIFT_BOUND

_LN2 = tl.constexpr(0.6931471805599453)


class RowSums(NamedTuple):
    """Sums over the columns of a row or slice: divergence, E_q[dlogp], p log2 p, q log2 q."""

    value: tl.tensor
    mean_dlogp: tl.tensor
    teacher_mean_log2: tl.tensor
    student_mean_log2: tl.tensor


class _Exponents(NamedTuple):
    """log2 q = y c - offset - rest; see the module docstring."""

    c: tl.tensor
    offset: tl.tensor
    rest: tl.tensor


@triton.jit
def _exponents(log_sum, c):
    offset = tl.fma(log_sum.origin, c, log_sum.log2_sum)
    return _Exponents(c, offset, tl.fma(log_sum.origin, c, -offset) + log_sum.log2_sum)


@triton.jit
def in_range(s_log_sum, t_log_sum, student_c, teacher_c, s_lowest, t_lowest, mixture, DIVERGENCE: tl.constexpr):
    """Returns whether the logits from the lowest ones on suit these passes.

    The formulas of jsd also need probabilities that do not underflow, and a beta that is not near 0 or 1.
    """
    s_exponent, t_exponent = s_lowest * student_c, t_lowest * teacher_c
    suits = tl.minimum(s_exponent, t_exponent) > -SHIFT_BOUND
    if DIVERGENCE == "jsd":
        s_log2_q = s_exponent - tl.fma(s_log_sum.origin, student_c, s_log_sum.log2_sum)
        t_log2_p = t_exponent - tl.fma(t_log_sum.origin, teacher_c, t_log_sum.log2_sum)
        beta = mixture.teacher_share
        suits = (tl.minimum(s_log2_q, t_log2_p) > -120.0) & (beta >= 0.1) & (beta <= 0.9) & suits
    return suits


class _Sums(NamedTuple):
    """The running sums of each group: divergence (GROUPS,); q log(m / q) of jsd, q log2 q, p log2 p, (GROUPS, 1) each."""

    value: tl.tensor
    ratio: tl.tensor
    student: tl.tensor
    teacher: tl.tensor


@triton.jit
def _compare(s, t, student, teacher):
    """Returns log2 q, log2 p, q and p without the rests, r = log q - log p, and q - p in the scale of p."""
    log2_q = tl.fma(s, student.c, -student.offset)
    log2_p = tl.fma(t, teacher.c, -teacher.offset)
    q, p = tl.exp2(log2_q), tl.exp2(log2_p)
    rest = teacher.rest - student.rest
    return log2_q, log2_p, q, p, tl.fma(log2_q - log2_p, _LN2, rest * _LN2), tl.fma(q, tl.exp2(rest), -p)


@triton.jit
def _terms(p, r, d, log2_q, rest, series, DIVERGENCE: tl.constexpr):
    """Returns the terms of the divergence in the scale of p, and for jsd log(m / q)."""
    log_ratio = r
    if DIVERGENCE == "forward_kl":
        terms = fast_kl_terms(p, r, d)
    elif DIVERGENCE == "reverse_kl":
        terms = fast_kl_terms(d + p, -r, -d)
    else:
        m, log_ratio = fast_log_mixture_ratio(p, r, d, log2_q, rest, series)
        terms = fast_jsd_terms(p, r, d, m, log_ratio, series)
    return terms, log_ratio


@triton.jit
def _add_products(total, a, b):
    """Adds the products of a and b (GROUPS, columns) to the running sums (GROUPS, 1), one instruction per product."""
    GROUPS: tl.constexpr = a.shape[0]
    COLUMNS: tl.constexpr = a.shape[1]
    if COLUMNS == 1:
        total = tl.fma(a, b, total)
    else:
        a_even, a_odd = tl.split(tl.reshape(a, (GROUPS, COLUMNS // 2, 2)))
        b_even, b_odd = tl.split(tl.reshape(b, (GROUPS, COLUMNS // 2, 2)))
        total = _add_products(_add_products(total, a_even, b_even), a_odd, b_odd)
    return total


@triton.jit
def _sums_of_edges(
    s, t, exists, s_exp, t_exp, series, DIVERGENCE: tl.constexpr, ENTROPIES: tl.constexpr, GROUPS: tl.constexpr
):
    """Returns `_Sums` that hold the sums over both edges in the first group, and q - p of the edges."""
    log2_q, log2_p, q, p, r, d = _compare(s, t, s_exp, t_exp)
    terms, log_ratio = _terms(p, r, d, log2_q, t_exp.rest - s_exp.rest, series, DIVERGENCE)
    first = tl.arange(0, GROUPS) == 0
    value = tl.where(first, tl.sum(tl.where(exists, terms, 0.0), axis=0), 0.0)
    ratio, student, teacher = 0.0, 0.0, 0.0
    if DIVERGENCE == "jsd":
        ratio = tl.sum(tl.where(exists, q * log_ratio, 0.0), axis=0)
    if ENTROPIES:
        student = tl.sum(tl.where(exists, q * log2_q, 0.0), axis=0)
        teacher = tl.sum(tl.where(exists, p * log2_p, 0.0), axis=0)
    first = first[:, None]
    return _Sums(value, tl.where(first, ratio, 0.0), tl.where(first, student, 0.0), tl.where(first, teacher, 0.0)), d


@triton.jit
def _add_columns(sums, s, t, exists, s_exp, t_exp, series, DIVERGENCE: tl.constexpr, ENTROPIES: tl.constexpr):
    """Returns the `_Sums` with columns s and t (GROUPS, columns) added, and q - p of the columns.

    `exists` (GROUPS, 1) is None if all groups exist.
    """
    log2_q, log2_p, q, p, r, d = _compare(s, t, s_exp, t_exp)
    terms, log_ratio = _terms(p, r, d, log2_q, t_exp.rest - s_exp.rest, series, DIVERGENCE)
    if exists is not None:
        terms, log_ratio = tl.where(exists, terms, 0.0), tl.where(exists, log_ratio, 0.0)
        log2_q, log2_p = tl.where(exists, log2_q, 0.0), tl.where(exists, log2_p, 0.0)
    ratio, student, teacher = sums.ratio, sums.student, sums.teacher
    value = sums.value + tl.sum(terms, axis=1)
    if DIVERGENCE == "jsd":
        ratio = _add_products(ratio, q, log_ratio)
    if ENTROPIES:
        student = _add_products(student, q, log2_q)
        teacher = _add_products(teacher, p, log2_p)
    return _Sums(value, ratio, student, teacher), d


@triton.jit
def _add_block(
    sums,
    s,
    t,
    exists,
    s_exp,
    t_exp,
    series,
    DIVERGENCE: tl.constexpr,
    ENTROPIES: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Returns the `_Sums` with blocks s and t of `load_block` added, and q - p of the block (GROUPS, GROUP).

    It computes one half after the other, which needs fewer registers.
    """
    s_even, s_odd = halves(s, GROUPS, GROUP)
    t_even, t_odd = halves(t, GROUPS, GROUP)
    sums, d_even = _add_columns(sums, s_even, t_even, exists, s_exp, t_exp, series, DIVERGENCE, ENTROPIES)
    sums, d_odd = _add_columns(sums, s_odd, t_odd, exists, s_exp, t_exp, series, DIVERGENCE, ENTROPIES)
    return sums, tl.reshape(tl.join(d_even, d_odd), (GROUPS, GROUP))


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
    GRAD_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Returns the `RowSums` of two `LogitRow`s; also writes the gradient of forward_kl if the `GradRow` has a pointer.

    It writes no gradient if the row's weight is 0. GRAD_LATER: a gradient pass follows, which reads the rows again.
    """
    WRITE_GRAD: tl.constexpr = grad.pointer is not None and not GRAD_LATER
    EVICTION: tl.constexpr = "" if GRAD_LATER else "evict_first"
    dtype: tl.constexpr = grad.pointer.dtype.element_ty if WRITE_GRAD else None
    s_exp, t_exp = _exponents(s_log_sum, student.c), _exponents(t_log_sum, teacher.c)
    p_scale = tl.exp2(-t_exp.rest)
    factor = grad.weight * grad.scale * p_scale
    series = jsd_series(mixture)
    parts = split_row(student.pointer, columns, GROUP)
    written = only_if(grad.weight != 0.0, parts)
    s_edges = load_edges(student.pointer, parts)
    t_edges = load_edges(teacher.pointer, parts)
    sums, d = _sums_of_edges(s_edges, t_edges, parts.edge_exists, s_exp, t_exp, series, DIVERGENCE, ENTROPIES, GROUPS)
    if WRITE_GRAD:
        tl.debug_barrier()  # in place, all threads must have read the edges before one writes them
        store_edges(grad.pointer, written, round_to(d * factor, dtype))
    s_pointers = block_pointers(student.pointer, parts, True, GROUPS, GROUP)
    t_pointers = block_pointers(teacher.pointer, parts, TEACHER_ALIGNED, GROUPS, GROUP)
    blocks = parts.n_groups // GROUPS
    first = blocks * GROUPS
    exists = (first + tl.arange(0, GROUPS) < parts.n_groups)[:, None]
    s = load_partial_block(s_pointers, first, exists, EVICTION)
    t = load_partial_block(t_pointers, first, exists, EVICTION)
    s_next = load_block(s_pointers, first - GROUPS, positive(blocks), EVICTION)
    t_next = load_block(t_pointers, first - GROUPS, positive(blocks), EVICTION)
    sums, d = _add_block(sums, s, t, exists, s_exp, t_exp, series, DIVERGENCE, ENTROPIES, GROUPS, GROUP)
    if WRITE_GRAD:
        store_groups(grad.pointer, written, first, round_to(d * factor, dtype), GRAD_ALIGNED, GROUPS, GROUP)
    first -= GROUPS
    for _ in range(blocks):
        s, t = s_next, t_next
        first -= GROUPS
        s_next = load_block(s_pointers, first, positive(first + GROUPS), EVICTION)
        t_next = load_block(t_pointers, first, positive(first + GROUPS), EVICTION)
        sums, d = _add_block(sums, s, t, None, s_exp, t_exp, series, DIVERGENCE, ENTROPIES, GROUPS, GROUP)
        if WRITE_GRAD:
            g, after = round_to(d * factor, dtype), GROUPS * GROUP  # columns from the next block to this one
            store_block(grad.pointer + after, parts, first, g, positive(written.n_groups), GRAD_ALIGNED, GROUPS, GROUP)
    value = p_scale * tl.sum(sums.value, axis=0)
    value = tl.where(value < 0.0, 0.0, value)  # the rounding of d, if all terms are tiny; NaN stays NaN
    q_scale = tl.exp2(-s_exp.rest)
    s_mean_log2, t_mean_log2 = 0.0, 0.0
    if ENTROPIES:
        s_mean_log2 = tl.fma(q_scale, tl.sum(tl.sum(sums.student, axis=1), axis=0), -s_exp.rest)
        t_mean_log2 = tl.fma(p_scale, tl.sum(tl.sum(sums.teacher, axis=1), axis=0), -t_exp.rest)
    mean_dlogp = 0.0
    if DIVERGENCE == "reverse_kl":
        mean_dlogp = value
    elif DIVERGENCE == "jsd":
        row_ratio = tl.sum(tl.sum(sums.ratio, axis=1), axis=0)
        mean_dlogp = -mixture.student_share * q_scale * row_ratio
    return RowSums(value, mean_dlogp, t_mean_log2, s_mean_log2)


@triton.jit
def _gradient(s, t, student, teacher, factor, offset, series, dtype: tl.constexpr, DIVERGENCE: tl.constexpr):
    """Returns q (factor x + offset) with x = log(m / q) for jsd, and x = r for reverse_kl."""
    log2_q, _, q, p, r, d = _compare(s, t, student, teacher)
    x = r
    if DIVERGENCE == "jsd":
        _, x = fast_log_mixture_ratio(p, r, d, log2_q, teacher.rest - student.rest, series)
    return round_to(q * tl.fma(x, factor, offset), dtype)


@triton.jit
def fast_gradient_pass(
    student,
    teacher,
    s_log_sum,
    t_log_sum,
    columns,
    grad,
    mean_dlogp,
    mixture,
    DIVERGENCE: tl.constexpr,
    TEACHER_ALIGNED: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Writes the gradient of reverse_kl or jsd to the `GradRow`: q (dlogp - mean_dlogp)."""
    dtype: tl.constexpr = grad.pointer.dtype.element_ty
    s_exp, t_exp = _exponents(s_log_sum, student.c), _exponents(t_log_sum, teacher.c)
    series = jsd_series(mixture)
    factor = grad.weight * grad.scale * tl.exp2(-s_exp.rest)
    offset = -mean_dlogp * factor
    if DIVERGENCE == "jsd":
        factor *= -mixture.student_share
    parts = split_row(student.pointer, columns, GROUP)
    s_pointers = block_pointers(student.pointer, parts, True, GROUPS, GROUP)
    t_pointers = block_pointers(teacher.pointer, parts, TEACHER_ALIGNED, GROUPS, GROUP)
    s_edges = load_edges(student.pointer, parts)
    t_edges = load_edges(teacher.pointer, parts)
    g = _gradient(s_edges, t_edges, s_exp, t_exp, factor, offset, series, dtype, DIVERGENCE)
    tl.debug_barrier()  # in place, all threads must have read the edges before one writes them
    store_edges(grad.pointer, parts, g)
    blocks = parts.n_groups // GROUPS
    first = parts.n_groups - blocks * GROUPS
    exists = (tl.arange(0, GROUPS) < first)[:, None]
    s_next = load_partial_block(s_pointers, 0, exists, "evict_first")
    t_next = load_partial_block(t_pointers, 0, exists, "evict_first")
    s = to_float32(s_next, GROUPS, GROUP)
    t = to_float32(t_next, GROUPS, GROUP)
    s_next = load_block(s_pointers, first, positive(blocks), "evict_first")
    t_next = load_block(t_pointers, first, positive(blocks), "evict_first")
    g = _gradient(s, t, s_exp, t_exp, factor, offset, series, dtype, DIVERGENCE)
    store_block(grad.pointer, parts, 0, g, exists, GRAD_ALIGNED, GROUPS, GROUP)
    for block in range(blocks):
        s = to_float32(s_next, GROUPS, GROUP)
        t = to_float32(t_next, GROUPS, GROUP)
        s_next = load_block(s_pointers, first + GROUPS, positive(blocks - 1 - block), "evict_first")
        t_next = load_block(t_pointers, first + GROUPS, positive(blocks - 1 - block), "evict_first")
        g = _gradient(s, t, s_exp, t_exp, factor, offset, series, dtype, DIVERGENCE)
        store_block(grad.pointer, parts, first, g, positive(blocks), GRAD_ALIGNED, GROUPS, GROUP)
        first += GROUPS
