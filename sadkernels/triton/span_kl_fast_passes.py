"""The later passes over a pair of rows of 16-bit logits, with few instructions per column. They serve ordinary rows.

    fast_divergence_pass  sums of the divergence and of the statistics; for forward_kl also the gradient
    fast_gradient_pass    the gradient of reverse_kl and jsd, once E_q[dlogp] is known

As in `span_kl_fast_totals`, the loops process whole blocks, after a partial block. It is at the end of the row if the loop
goes backward.

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
    series = jsd_series(mixture)
    rest = t_exp.rest - s_exp.rest
    parts = split_row(student.pointer, columns, GROUP)
    written = only_if(grad.weight != 0.0, parts)
    s_pointers = block_pointers(student.pointer, parts, True, GROUPS, GROUP)
    t_pointers = block_pointers(teacher.pointer, parts, TEACHER_ALIGNED, GROUPS, GROUP)
    blocks = parts.n_groups // GROUPS
    first = blocks * GROUPS
    exists = (first + tl.arange(0, GROUPS) < parts.n_groups)[:, None]
    s_next = load_partial_block(s_pointers, first, exists, EVICTION)
    t_next = load_partial_block(t_pointers, first, exists, EVICTION)
    s = to_float32(s_next, GROUPS, GROUP)
    t = to_float32(t_next, GROUPS, GROUP)
    s_next = load_block(s_pointers, first - GROUPS, positive(blocks), EVICTION)
    t_next = load_block(t_pointers, first - GROUPS, positive(blocks), EVICTION)
    log2_q, log2_p, q, p, r, d = _compare(s, t, s_exp, t_exp)
    terms, log_ratio = _terms(p, r, d, log2_q, rest, series, DIVERGENCE)
    value_sum = tl.sum(tl.where(exists, terms, 0.0), axis=1)
    zeros = tl.full((GROUPS, GROUP // 2), 0.0, tl.float32)
    if DIVERGENCE == "jsd":
        ratio_sum = _add_products(zeros, q, tl.where(exists, log_ratio, 0.0), GROUPS, GROUP)
    if WRITE_GRAD:
        store_groups(grad.pointer, written, first, _rounded(d, factor, grad), grad.ALIGNED, GROUPS, GROUP)
    if ENTROPIES:
        s_sum = _add_products(zeros, q, tl.where(exists, log2_q, 0.0), GROUPS, GROUP)
        t_sum = _add_products(zeros, p, tl.where(exists, log2_p, 0.0), GROUPS, GROUP)
    for _ in range(blocks):
        first -= GROUPS
        s = to_float32(s_next, GROUPS, GROUP)
        t = to_float32(t_next, GROUPS, GROUP)
        s_next = load_block(s_pointers, first - GROUPS, positive(first), EVICTION)
        t_next = load_block(t_pointers, first - GROUPS, positive(first), EVICTION)
        log2_q, log2_p, q, p, r, d = _compare(s, t, s_exp, t_exp)
        terms, log_ratio = _terms(p, r, d, log2_q, rest, series, DIVERGENCE)
        value_sum += tl.sum(terms, axis=1)
        if DIVERGENCE == "jsd":
            ratio_sum = _add_products(ratio_sum, q, log_ratio, GROUPS, GROUP)
        if WRITE_GRAD:
            g = _rounded(d, factor, grad)
            store_block(grad.pointer, parts, first, g, positive(written.n_groups), grad.ALIGNED, GROUPS, GROUP)
        if ENTROPIES:
            s_sum = _add_products(s_sum, q, log2_q, GROUPS, GROUP)
            t_sum = _add_products(t_sum, p, log2_p, GROUPS, GROUP)
    s_edges = load_edges(student.pointer, parts)
    t_edges = load_edges(teacher.pointer, parts)
    log2_q, log2_p, q, p, r, d = _compare(s_edges, t_edges, s_exp, t_exp)
    terms, log_ratio = _terms(p, r, d, log2_q, rest, series, DIVERGENCE)
    edges_value = tl.sum(tl.where(parts.edge_exists, terms, 0.0), axis=0)
    if DIVERGENCE == "jsd":
        edges_ratio = tl.sum(tl.where(parts.edge_exists, q * log_ratio, 0.0), axis=0)
    if WRITE_GRAD:
        g_edges = _rounded(d, factor, grad)
    if ENTROPIES:
        s_edges_sum = tl.sum(tl.where(parts.edge_exists, q * log2_q, 0.0), axis=0)
        t_edges_sum = tl.sum(tl.where(parts.edge_exists, p * log2_p, 0.0), axis=0)
    value = p_scale * (tl.sum(value_sum, axis=0) + edges_value)
    if WRITE_GRAD:  # after the sum over all threads, so that in place all of them have read the edges
        store_edges(grad.pointer, written, g_edges)
    value = tl.where(value < 0.0, 0.0, value)  # the rounding of d, if all terms are tiny; NaN stays NaN
    q_scale = tl.exp2(-s_exp.rest)
    s_mean_log2, t_mean_log2 = 0.0, 0.0
    if ENTROPIES:
        s_mean_log2 = tl.fma(q_scale, tl.sum(tl.sum(s_sum, axis=1), axis=0) + s_edges_sum, -s_exp.rest)
        t_mean_log2 = tl.fma(p_scale, tl.sum(tl.sum(t_sum, axis=1), axis=0) + t_edges_sum, -t_exp.rest)
    mean_dlogp = 0.0
    if DIVERGENCE == "reverse_kl":
        mean_dlogp = value
    elif DIVERGENCE == "jsd":
        row_ratio = tl.sum(tl.sum(ratio_sum, axis=1), axis=0) + edges_ratio
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
    store_block(grad.pointer, parts, 0, g, exists, grad.ALIGNED, GROUPS, GROUP)
    for block in range(blocks):
        s = to_float32(s_next, GROUPS, GROUP)
        t = to_float32(t_next, GROUPS, GROUP)
        s_next = load_block(s_pointers, first + GROUPS, positive(blocks - 1 - block), "evict_first")
        t_next = load_block(t_pointers, first + GROUPS, positive(blocks - 1 - block), "evict_first")
        g = _gradient(s, t, s_exp, t_exp, factor, offset, series, dtype, DIVERGENCE)
        store_block(grad.pointer, parts, first, g, positive(blocks), grad.ALIGNED, GROUPS, GROUP)
        first += GROUPS
    g = _gradient(s_edges, t_edges, s_exp, t_exp, factor, offset, series, dtype, DIVERGENCE)
    store_edges(grad.pointer, parts, g)
