"""The later passes over a pair of rows, or over the same slice of both. They accept logits of any value.

    divergence_pass    sums of the divergence and of the statistics; for forward_kl also the gradient
    gradient_pass      the gradient, once E_q[dlogp] is known

The passes use the student's groups for the teacher too. Each pass runs in the opposite direction of the one before, so it
starts with the columns that are still in the caches. The last pass that reads marks its loads evict-first. Each pass reads a
block, and the edges, before it writes them, because the gradient may replace the student's logits in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from sadkernels.triton.divergences import divergence_gradient, divergence_terms
from sadkernels.triton.row_io import load_edges, load_groups, only_if, round_to, split_row, store_edges, store_groups
from sadkernels.triton.softmax import apply_softcap, log2_probabilities, mean_log2, softcap_backward, sum_over_threads
from sadkernels.triton.span_kl_fast_passes import RowSums


class GradRow(NamedTuple):
    """A row of the gradient by the student's logits: the derivative of the divergence by z / T, times weight * scale.

    `pointer` is None if the pass writes no gradient.
    """

    pointer: tl.tensor
    weight: tl.tensor  # derivative of the loss by the row's value
    scale: tl.tensor  # derivative of z / T by the logit, without the soft cap's slope


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
    TEACHER_ALIGNED: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Returns the `RowSums` of two `LogitRow`s of any values; also writes the gradient of forward_kl.

    It writes no gradient if the `GradRow` has no pointer or its weight is 0. GRAD_LATER: a gradient pass follows, and reads
    the rows again. TEACHER_ALIGNED, GRAD_ALIGNED: whether the groups of these rows start at multiples of 16 bytes where the
    student's do.
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
    s_next = load_groups(student.pointer, parts, first, True, EVICTION, GROUPS, GROUP)
    t_next = load_groups(teacher.pointer, parts, first, TEACHER_ALIGNED, EVICTION, GROUPS, GROUP)
    for _ in range(blocks):
        exists = (first + tl.arange(0, GROUPS) < parts.n_groups)[:, None]
        s = apply_softcap(s_next, student.tanh_scale, exists, student.CAPPED)
        t = apply_softcap(t_next, teacher.tanh_scale, exists, teacher.CAPPED)
        s_next = load_groups(student.pointer, parts, first - GROUPS, True, EVICTION, GROUPS, GROUP)
        t_next = load_groups(teacher.pointer, parts, first - GROUPS, TEACHER_ALIGNED, EVICTION, GROUPS, GROUP)
        log2_q, log2_p, q, p, r = _compare(s, t, student, teacher, s_log_sum, t_log_sum)
        terms, mean_dlogp_terms = divergence_terms(q, p, r, mixture, DIVERGENCE)
        value_sum += tl.sum(terms, axis=1)
        if DIVERGENCE == "jsd":
            dlogp_sum += tl.sum(mean_dlogp_terms, axis=1)
        if WRITE_GRAD:
            g = round_to(softcap_backward((q - p) * factor, s, student.CAPPED), grad.pointer.dtype.element_ty)
            store_groups(grad.pointer, written, first, g, GRAD_ALIGNED, GROUPS, GROUP)
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
    value = tl.sum(value_sum, axis=0) + sum_over_threads(terms)
    mean_dlogp = 0.0
    if DIVERGENCE == "jsd":
        mean_dlogp = tl.sum(dlogp_sum, axis=0) + sum_over_threads(mean_dlogp_terms)
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
    TEACHER_ALIGNED: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Writes the gradient of the divergence to the `GradRow`. The constants are those of `divergence_pass`."""
    factor = grad.weight * grad.scale
    parts = split_row(student.pointer, columns, GROUP)
    s_edges = load_edges(student.pointer, parts)
    t_edges = load_edges(teacher.pointer, parts)
    s_next = load_groups(student.pointer, parts, 0, True, "evict_first", GROUPS, GROUP)
    t_next = load_groups(teacher.pointer, parts, 0, TEACHER_ALIGNED, "evict_first", GROUPS, GROUP)
    for block in range(tl.cdiv(parts.n_groups, GROUPS)):
        first = block * GROUPS
        exists = (first + tl.arange(0, GROUPS) < parts.n_groups)[:, None]
        s = apply_softcap(s_next, student.tanh_scale, exists, student.CAPPED)
        t = apply_softcap(t_next, teacher.tanh_scale, exists, teacher.CAPPED)
        s_next = load_groups(student.pointer, parts, first + GROUPS, True, "evict_first", GROUPS, GROUP)
        t_next = load_groups(teacher.pointer, parts, first + GROUPS, TEACHER_ALIGNED, "evict_first", GROUPS, GROUP)
        _, _, q, p, r = _compare(s, t, student, teacher, s_log_sum, t_log_sum)
        g = divergence_gradient(q, p, r, mean_dlogp, mixture, DIVERGENCE)
        g = round_to(softcap_backward(g * factor, s, student.CAPPED), grad.pointer.dtype.element_ty)
        store_groups(grad.pointer, parts, first, g, GRAD_ALIGNED, GROUPS, GROUP)
    s = apply_softcap(s_edges, student.tanh_scale, parts.edge_exists, student.CAPPED)
    t = apply_softcap(t_edges, teacher.tanh_scale, parts.edge_exists, teacher.CAPPED)
    _, _, q, p, r = _compare(s, t, student, teacher, s_log_sum, t_log_sum)
    g = divergence_gradient(q, p, r, mean_dlogp, mixture, DIVERGENCE)
    g = round_to(softcap_backward(g * factor, s, student.CAPPED), grad.pointer.dtype.element_ty)
    store_edges(grad.pointer, parts, g)
