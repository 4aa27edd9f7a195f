"""The passes over a pair of rows, or over the same slice of both: totals, divergence, gradient.

    exact_totals_pass  top and total of each softmax, and the argmax of each row; each row has its own groups
    divergence_pass    sums of the divergence and of the statistics; for forward_kl also the gradient
    gradient_pass      the gradient, once E_q[dlogp] is known

They accept logits of any value. The functions `row_*` choose between them and the fast passes.

The passes that compare both rows use the student's groups for the teacher too. Each pass runs in the opposite direction of
the one before, so it starts with the columns that are still in the caches. The last pass that reads marks its loads
evict-first. Each pass reads a block, and the edges, before it writes them, because the gradient may replace the student's
logits in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from sadkernels.triton.divergences import divergence_gradient, divergence_terms
from sadkernels.triton.row_io import load_edges, load_groups, only_if, round_to, split_row, store_edges, store_groups
from sadkernels.triton.softmax import (
    add_block,
    apply_softcap,
    log2_probabilities,
    log_sum_of_totals,
    mean_log2,
    merge_groups_and_edges,
    no_groups,
    out_of_bounds,
    row_argmax,
    softcap_backward,
    track_argmax,
)
from sadkernels.triton.span_kl_fast_passes import RowSums, fast_divergence_pass, fast_gradient_pass, in_range
from sadkernels.triton.span_kl_fast_totals import fast_totals_pass


class RowTotals(NamedTuple):
    """Top and total of a row or slice; with ARGMAX also its largest logit and its lowest column."""

    top: tl.tensor
    total: tl.tensor
    best: tl.tensor
    argmax: tl.tensor


class Softmax(NamedTuple):
    """The normalization of a row or slice, as in `LogSum`; with ARGMAX also its largest logit and its lowest column."""

    origin: tl.tensor
    log2_sum: tl.tensor
    best: tl.tensor
    argmax: tl.tensor


class GradRow(NamedTuple):
    """A row of the gradient by the student's logits: the derivative of the divergence by z / T, times weight * scale.

    `pointer` is None if the pass writes no gradient.
    """

    pointer: tl.tensor
    weight: tl.tensor  # derivative of the loss by the row's value
    scale: tl.tensor  # derivative of z / T by the logit, without the soft cap's slope
    ALIGNED: tl.constexpr  # whether the row's groups start at multiples of 16 bytes where the student's do


@triton.jit
def exact_totals_pass(
    student,
    teacher,
    columns,
    ARGMAX: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Returns the `RowTotals` of two `LogitRow`s of any values, each read along its own aligned groups.

    The pass is rare, so it saves registers: it loads no block ahead.
    """
    s_parts = split_row(student.pointer, columns, GROUP)
    t_parts = split_row(teacher.pointer, columns, GROUP)
    s_edges = load_edges(student.pointer, s_parts)
    t_edges = load_edges(teacher.pointer, t_parts)
    s_shift, s_total = no_groups(GROUPS, True)
    t_shift, t_total = no_groups(GROUPS, True)
    if ARGMAX:
        s_best = tl.full((GROUPS,), float("-inf"), tl.float32)
        t_best = tl.full((GROUPS,), float("-inf"), tl.float32)
        s_column = tl.full((GROUPS,), 0, tl.int32)
        t_column = tl.full((GROUPS,), 0, tl.int32)
    for block in range(tl.cdiv(tl.maximum(s_parts.n_groups, t_parts.n_groups), GROUPS)):
        first = block * GROUPS
        s = load_groups(student.pointer, s_parts, first, True, "", GROUPS, GROUP).to(tl.float32)
        t = load_groups(teacher.pointer, t_parts, first, True, "", GROUPS, GROUP).to(tl.float32)
        if ARGMAX:
            s_top, s_best, s_column = track_argmax(s, s_parts.head, first, s_best, s_column, GROUPS, GROUP)
            t_top, t_best, t_column = track_argmax(t, t_parts.head, first, t_best, t_column, GROUPS, GROUP)
        s_exists = (first + tl.arange(0, GROUPS) < s_parts.n_groups)[:, None]
        s = apply_softcap(s, student.tanh_scale, s_exists, student.CAPPED)
        t_exists = (first + tl.arange(0, GROUPS) < t_parts.n_groups)[:, None]
        t = apply_softcap(t, teacher.tanh_scale, t_exists, teacher.CAPPED)
        if student.CAPPED or not ARGMAX:
            s_top = tl.max(s, axis=1)
        if teacher.CAPPED or not ARGMAX:
            t_top = tl.max(t, axis=1)
        s_shift, s_total = add_block(s, s_top, student.c, s_shift, s_total, True)
        t_shift, t_total = add_block(t, t_top, teacher.c, t_shift, t_total, True)
    s_row_best, s_argmax, t_row_best, t_argmax = 0.0, 0, 0.0, 0
    if ARGMAX:
        s_row_best, s_argmax = row_argmax(s_best, s_column, s_edges, s_parts.edge_column)
        t_row_best, t_argmax = row_argmax(t_best, t_column, t_edges, t_parts.edge_column)
    s_edges = apply_softcap(s_edges, student.tanh_scale, s_parts.edge_exists, student.CAPPED)
    t_edges = apply_softcap(t_edges, teacher.tanh_scale, t_parts.edge_exists, teacher.CAPPED)
    s_row_shift, s_row_total = merge_groups_and_edges(s_shift, s_total, s_edges, student.c, True)
    t_row_shift, t_row_total = merge_groups_and_edges(t_shift, t_total, t_edges, teacher.c, True)
    return (
        RowTotals(s_row_shift, s_row_total, s_row_best, s_argmax),
        RowTotals(t_row_shift, t_row_total, t_row_best, t_argmax),
    )


@triton.jit
def row_softmaxes(
    student,
    teacher,
    columns,
    mixture,
    ARGMAX: tl.constexpr,
    FAST: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Returns the `Softmax`es of two `LogitRow`s, and with FAST whether the fast passes may read the rows again.

    An exact pass follows if the fast pass finds large exponents, or a NaN that it ignores in the argmax. It also follows for
    one column, so that its probability is exactly 1.
    """
    s_totals, t_totals = fast_totals_pass(student, teacher, columns, ARGMAX, FAST, GROUPS, GROUP)
    s_sum = log_sum_of_totals(s_totals.shift, s_totals.total, student.c, False)
    t_sum = log_sum_of_totals(t_totals.shift, t_totals.total, teacher.c, False)
    s_origin, s_log2_sum, t_origin, t_log2_sum = s_sum.origin, s_sum.log2_sum, t_sum.origin, t_sum.log2_sum
    s_best, s_argmax, t_best, t_argmax = s_totals.best, s_totals.argmax, t_totals.best, t_totals.argmax
    exact = out_of_bounds(s_totals.shift) | out_of_bounds(t_totals.shift) | (columns == 1)
    if ARGMAX:
        exact = exact | (s_totals.total != s_totals.total) | (t_totals.total != t_totals.total)
    ordinary = False
    if FAST:
        suits = in_range(s_sum, t_sum, student.c, teacher.c, s_totals.lowest, t_totals.lowest, mixture, DIVERGENCE)
        ordinary = suits & (s_totals.total + t_totals.total < float("inf")) & (exact == 0)
    if exact:
        s_exact, t_exact = exact_totals_pass(student, teacher, columns, ARGMAX, GROUPS, GROUP)
        s_sum = log_sum_of_totals(s_exact.top, s_exact.total, student.c, True)
        t_sum = log_sum_of_totals(t_exact.top, t_exact.total, teacher.c, True)
        s_origin, s_log2_sum, t_origin, t_log2_sum = s_sum.origin, s_sum.log2_sum, t_sum.origin, t_sum.log2_sum
        s_best, s_argmax, t_best, t_argmax = s_exact.best, s_exact.argmax, t_exact.best, t_exact.argmax
    s_softmax, t_softmax = Softmax(s_origin, s_log2_sum, s_best, s_argmax), Softmax(t_origin, t_log2_sum, t_best, t_argmax)
    return s_softmax, t_softmax, ordinary


@triton.jit
def _compare(s, t, student, teacher, s_sum, t_sum):
    """Returns log2 q, log2 p, q, p, and r = log q - log p of the columns s and t; r is NaN if both logits are -inf."""
    log2_q = log2_probabilities(s, student.c, s_sum)
    log2_p = log2_probabilities(t, teacher.c, t_sum)
    return log2_q, log2_p, tl.exp2(log2_q), tl.exp2(log2_p), (log2_q - log2_p) * 0.6931471805599453  # ln 2


@triton.jit
def divergence_pass(
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
    AHEAD: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Returns the `RowSums` of two `LogitRow`s of any values; also writes the gradient of forward_kl.

    It writes no gradient if the `GradRow` has no pointer or its weight is 0. GRAD_LATER: a gradient pass follows, and reads
    the rows again. AHEAD: loads the next block while it computes, which needs more registers.
    """
    WRITE_GRAD: tl.constexpr = grad.pointer is not None and not GRAD_LATER
    tl.static_assert(not WRITE_GRAD or DIVERGENCE == "forward_kl", "the gradient needs E_q[dlogp]")
    EVICTION: tl.constexpr = "" if GRAD_LATER else "evict_first"
    parts = split_row(student.pointer, columns, GROUP)
    factor = grad.weight * grad.scale
    written = only_if(grad.weight != 0.0, parts)
    value_sum = tl.full((GROUPS,), 0.0, tl.float32)
    if DIVERGENCE == "jsd":
        dlogp_sum = tl.full((GROUPS,), 0.0, tl.float32)
    if ENTROPIES:
        s_sum = tl.full((GROUPS,), 0.0, tl.float32)
        t_sum = tl.full((GROUPS,), 0.0, tl.float32)
    blocks = tl.cdiv(parts.n_groups, GROUPS)
    first = (blocks - 1) * GROUPS
    if AHEAD:
        s_next = load_groups(student.pointer, parts, first, True, EVICTION, GROUPS, GROUP)
        t_next = load_groups(teacher.pointer, parts, first, teacher.ALIGNED, EVICTION, GROUPS, GROUP)
    for _ in range(blocks):
        exists = (first + tl.arange(0, GROUPS) < parts.n_groups)[:, None]
        if AHEAD:
            s = apply_softcap(s_next, student.tanh_scale, exists, student.CAPPED)
            t = apply_softcap(t_next, teacher.tanh_scale, exists, teacher.CAPPED)
            s_next = load_groups(student.pointer, parts, first - GROUPS, True, EVICTION, GROUPS, GROUP)
            t_next = load_groups(teacher.pointer, parts, first - GROUPS, teacher.ALIGNED, EVICTION, GROUPS, GROUP)
        else:
            s_now = load_groups(student.pointer, parts, first, True, EVICTION, GROUPS, GROUP)
            t_now = load_groups(teacher.pointer, parts, first, teacher.ALIGNED, EVICTION, GROUPS, GROUP)
            s = apply_softcap(s_now, student.tanh_scale, exists, student.CAPPED)
            t = apply_softcap(t_now, teacher.tanh_scale, exists, teacher.CAPPED)
        log2_q, log2_p, q, p, r = _compare(s, t, student, teacher, s_log_sum, t_log_sum)
        terms, mean_dlogp_terms = divergence_terms(q, p, r, mixture, DIVERGENCE)
        value_sum += tl.sum(terms, axis=1)
        if DIVERGENCE == "jsd":
            dlogp_sum += tl.sum(mean_dlogp_terms, axis=1)
        if WRITE_GRAD:
            g = round_to(softcap_backward((q - p) * factor, s, student.CAPPED), grad.pointer.dtype.element_ty)
            store_groups(grad.pointer, written, first, g, grad.ALIGNED, GROUPS, GROUP)
        if ENTROPIES:
            s_sum += mean_log2(q, log2_q)
            t_sum += mean_log2(p, log2_p)
        first -= GROUPS
    s_edges = load_edges(student.pointer, parts)
    t_edges = load_edges(teacher.pointer, parts)
    s = apply_softcap(s_edges, student.tanh_scale, parts.edge_exists, student.CAPPED)
    t = apply_softcap(t_edges, teacher.tanh_scale, parts.edge_exists, teacher.CAPPED)
    log2_q, log2_p, q, p, r = _compare(s, t, student, teacher, s_log_sum, t_log_sum)
    terms, mean_dlogp_terms = divergence_terms(q, p, r, mixture, DIVERGENCE)
    value = tl.sum(value_sum, axis=0) + tl.sum(terms, axis=0)
    mean_dlogp = 0.0
    if DIVERGENCE == "jsd":
        mean_dlogp = tl.sum(dlogp_sum, axis=0) + tl.sum(mean_dlogp_terms, axis=0)
    elif DIVERGENCE == "reverse_kl":
        mean_dlogp = value
    if WRITE_GRAD:
        g = round_to(softcap_backward((q - p) * factor, s, student.CAPPED), grad.pointer.dtype.element_ty)
        store_edges(grad.pointer, written, g)
    s_mean_log2, t_mean_log2 = 0.0, 0.0
    if ENTROPIES:
        s_mean_log2 = tl.sum(s_sum, axis=0) + mean_log2(q, log2_q)
        t_mean_log2 = tl.sum(t_sum, axis=0) + mean_log2(p, log2_p)
    return RowSums(value, mean_dlogp, t_mean_log2, s_mean_log2)


@triton.jit
def row_sums(
    student,
    teacher,
    s_log_sum,
    t_log_sum,
    columns,
    grad,
    mixture,
    ordinary,
    FAST: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    ENTROPIES: tl.constexpr,
    GRAD_LATER: tl.constexpr,
    TEACHER_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Runs `fast_divergence_pass` if it is compiled (FAST) and the row is ordinary, otherwise `divergence_pass`."""
    value, mean_dlogp, t_mean_log2, s_mean_log2 = 0.0, 0.0, 0.0, 0.0
    if FAST:
        if ordinary:
            sums = fast_divergence_pass(
                student,
                teacher,
                s_log_sum,
                t_log_sum,
                columns,
                grad,
                mixture,
                DIVERGENCE,
                ENTROPIES,
                GRAD_LATER,
                TEACHER_ALIGNED,
                GROUPS,
                GROUP,
            )
            value, mean_dlogp = sums.value, sums.mean_dlogp
            t_mean_log2, s_mean_log2 = sums.teacher_mean_log2, sums.student_mean_log2
    if not ordinary:
        sums = divergence_pass(
            student,
            teacher,
            s_log_sum,
            t_log_sum,
            columns,
            grad,
            mixture,
            DIVERGENCE,
            ENTROPIES,
            GRAD_LATER,
            not FAST,
            GROUPS,
            GROUP,
        )
        value, mean_dlogp = sums.value, sums.mean_dlogp
        t_mean_log2, s_mean_log2 = sums.teacher_mean_log2, sums.student_mean_log2
    return RowSums(value, mean_dlogp, t_mean_log2, s_mean_log2)


@triton.jit
def gradient_pass(
    student,
    teacher,
    s_log_sum,
    t_log_sum,
    columns,
    grad,
    mean_dlogp,
    mixture,
    DIVERGENCE: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Writes the gradient of the divergence to the `GradRow`."""
    factor = grad.weight * grad.scale
    parts = split_row(student.pointer, columns, GROUP)
    s_edges = load_edges(student.pointer, parts)
    t_edges = load_edges(teacher.pointer, parts)
    s_next = load_groups(student.pointer, parts, 0, True, "evict_first", GROUPS, GROUP)
    t_next = load_groups(teacher.pointer, parts, 0, teacher.ALIGNED, "evict_first", GROUPS, GROUP)
    for block in range(tl.cdiv(parts.n_groups, GROUPS)):
        first = block * GROUPS
        exists = (first + tl.arange(0, GROUPS) < parts.n_groups)[:, None]
        s = apply_softcap(s_next, student.tanh_scale, exists, student.CAPPED)
        t = apply_softcap(t_next, teacher.tanh_scale, exists, teacher.CAPPED)
        s_next = load_groups(student.pointer, parts, first + GROUPS, True, "evict_first", GROUPS, GROUP)
        t_next = load_groups(teacher.pointer, parts, first + GROUPS, teacher.ALIGNED, "evict_first", GROUPS, GROUP)
        _, _, q, p, r = _compare(s, t, student, teacher, s_log_sum, t_log_sum)
        g = divergence_gradient(q, p, r, mean_dlogp, mixture, DIVERGENCE)
        g = round_to(softcap_backward(g * factor, s, student.CAPPED), grad.pointer.dtype.element_ty)
        store_groups(grad.pointer, parts, first, g, grad.ALIGNED, GROUPS, GROUP)
    s = apply_softcap(s_edges, student.tanh_scale, parts.edge_exists, student.CAPPED)
    t = apply_softcap(t_edges, teacher.tanh_scale, parts.edge_exists, teacher.CAPPED)
    _, _, q, p, r = _compare(s, t, student, teacher, s_log_sum, t_log_sum)
    g = divergence_gradient(q, p, r, mean_dlogp, mixture, DIVERGENCE)
    g = round_to(softcap_backward(g * factor, s, student.CAPPED), grad.pointer.dtype.element_ty)
    store_edges(grad.pointer, parts, g)


@triton.jit
def row_gradient(
    student,
    teacher,
    s_log_sum,
    t_log_sum,
    columns,
    grad,
    mean_dlogp,
    mixture,
    ordinary,
    FAST: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    TEACHER_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Runs `fast_gradient_pass` if it is compiled (FAST) and the row is ordinary, otherwise `gradient_pass`."""
    if FAST:
        if ordinary:
            fast_gradient_pass(
                student,
                teacher,
                s_log_sum,
                t_log_sum,
                columns,
                grad,
                mean_dlogp,
                mixture,
                DIVERGENCE,
                TEACHER_ALIGNED,
                GROUPS,
                GROUP,
            )
    if not ordinary:
        gradient_pass(student, teacher, s_log_sum, t_log_sum, columns, grad, mean_dlogp, mixture, DIVERGENCE, GROUPS, GROUP)
