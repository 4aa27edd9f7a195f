"""The kernel of the top-k losses, on the grid of `span_kl_kernels`. `sadkernels.reference.topk_span_kl` has the formulas.

The columns of a row are the teacher's top-k columns and its label, which are loaded as a vector and a number, and the rest.
The tail is every column outside the top-k: the rest, and the label if it is not in the top-k. The kernel reads a row twice:

    _rest_pass            shift and total of the rest; the argmax over all columns
    _write_scaled_softmax the gradient as if every column were in the tail; the entropy

Between the two passes it computes the value and the state. After them it overwrites the gradient at the top-k columns and
the label. Exponents are relative to an integer shift, so no sum leaves the range of float32; the tail has its own shift.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from sadkernels.triton.divergences import kl_terms
from sadkernels.triton.row_io import (
    fill_zeros,
    load_edges,
    load_groups,
    round_to,
    row_pointer,
    split_row,
    store_edges,
    store_groups,
)
from sadkernels.triton.softmax import (
    NO_SHIFT,
    LogitRow,
    Softmax,
    add_block,
    apply_softcap,
    entropy,
    integer_shift,
    log_sum_exp,
    mean_log2,
    merge_groups_and_edges,
    probabilities,
    row_argmax,
    softcap_backward,
    softmax_from_log_sum_exp,
    track_argmax,
)

_ABSENT = tl.constexpr(2**31 - 1)  # as in `sadkernels.topk`
_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_SIZES = [
    *(f"{x}_{part}" for x in ("student", "grad") for part in ("inner", "outer_stride", "inner_stride")),
    *("n_rows", "vocab_size", "grad_columns", "k"),
]
_POINTERS = ["student", "grad", "rows", "weights", "state_given", "value", "state", "entropies", "argmax"]
_TARGET_POINTERS = ["columns", "log_p", "log_tail", "labels"]


class _Topk(NamedTuple):
    """The teacher's top-k of a row, as vectors of MAX_K lanes."""

    pointer: tl.tensor  # to the k columns, in ascending order
    k: tl.tensor
    column: tl.tensor  # _ABSENT in the lanes beyond k
    valid: tl.tensor  # whether the column exists and is not a repetition
    log_p: tl.tensor
    y: tl.tensor  # the student's logits there, after the soft cap


class _Label(NamedTuple):
    """The label of a row."""

    column: tl.tensor  # -1 if the row has none
    in_tail: tl.tensor  # whether the row has a label outside the top-k
    y: tl.tensor  # the student's logit there, after the soft cap


class _Totals(NamedTuple):
    """Shift and total of a set of columns."""

    shift: tl.tensor
    total: tl.tensor


class _Outcomes(NamedTuple):
    """The probabilities of the top-k columns, the label and the tail; q = 2^a / total of the student, p of the teacher."""

    a: tl.tensor
    q: tl.tensor
    p: tl.tensor
    a_label: tl.tensor
    q_label: tl.tensor
    log_p_tail: tl.tensor
    p_tail: tl.tensor
    log2_q_tail: tl.tensor
    log2_inverse_total: tl.tensor


@triton.jit
def _load_target(x_row, row, columns, log_p, labels, k, vocab_size, MAX_K: tl.constexpr):
    """Returns the `_Topk` and the `_Label` of a row."""
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
    return _Topk(pointer, k, column, valid, topk_log_p, y), _Label(label, in_tail, label_y)


@triton.jit
def _rest_pass(x_row, columns, topk, label, ARGMAX: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Returns the `_Totals` of the columns that are neither in the top-k nor the label, and the argmax over all columns.

    The top-k columns ascend, so each block excludes only its own columns, one after the other.
    """
    parts = split_row(x_row.pointer, columns, GROUP)
    edges = load_edges(x_row.pointer, parts)
    shift = tl.full((GROUPS,), NO_SHIFT, tl.float32)
    total = tl.full((GROUPS,), 0.0, tl.float32)
    if ARGMAX:
        best = tl.full((GROUPS,), float("-inf"), tl.float32)
        best_column = tl.full((GROUPS,), 0, tl.int32)
    lanes = tl.arange(0, GROUPS)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    entry = 0
    excluded = tl.load(topk.pointer, mask=topk.k > 0, other=_ABSENT)
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
        y = tl.where(lanes == label.column - block_start, float("-inf"), y)
        while excluded < block_start + GROUPS * GROUP:
            y = tl.where(lanes == excluded - block_start, float("-inf"), y)
            entry += 1
            excluded = tl.load(topk.pointer + entry, mask=entry < topk.k, other=_ABSENT)
        shift, total = add_block(y, tl.max(y, axis=1), x_row.c, shift, total)
    argmax = 0
    if ARGMAX:
        _, argmax = row_argmax(best, best_column, edges, parts.edge_column)
    edges = apply_softcap(edges, x_row.tanh_scale, parts.edge_exists, x_row.CAPPED)
    in_topk = tl.max((parts.edge_column[:, None] == topk.column[None, :]).to(tl.int32), axis=1)
    edges = tl.where((in_topk != 0) | (parts.edge_column == label.column), float("-inf"), edges)
    row_shift, row_total = merge_groups_and_edges(shift, total, edges, x_row.c)
    return _Totals(row_shift, row_total), argmax


@triton.jit
def _tail_totals(rest, label, c):
    """Returns the `_Totals` of the tail: the rest, and the label if it is in the tail."""
    shift = tl.where(label.in_tail, tl.maximum(rest.shift, integer_shift(label.y * c)), rest.shift)
    label_power = tl.where(label.in_tail, tl.exp2(tl.fma(label.y, c, -shift)), 0.0)
    return _Totals(shift, rest.total * tl.exp2(rest.shift - shift) + label_power)


@triton.jit
def _row_totals(topk, tail, c):
    """Returns the `_Totals` of all columns: the top-k and the tail."""
    shift = tl.maximum(tail.shift, integer_shift(tl.max(topk.y, axis=0) * c))
    topk_total = tl.sum(tl.where(topk.valid, tl.exp2(tl.fma(topk.y, c, -shift)), 0.0), axis=0)
    return _Totals(shift, topk_total + tail.total * tl.exp2(tail.shift - shift))


@triton.jit
def _outcomes(topk, label, tail, softmax, c, log_tail, row):
    """Returns the `_Outcomes` of a row."""
    log2_inverse_total = tl.log2(softmax.inverse_total)
    a, q = probabilities(topk.y, c, softmax)
    p = tl.exp2(topk.log_p * _LOG2E)
    a_label, q_label = probabilities(label.y, c, softmax)
    log_p_tail = tl.load(log_tail + row)
    p_tail = tl.exp2(log_p_tail * _LOG2E)
    log2_q_tail = (tail.shift - softmax.shift) + (tl.log2(tail.total) + log2_inverse_total)
    return _Outcomes(a, q, p, a_label, q_label, log_p_tail, p_tail, log2_q_tail, log2_inverse_total)


@triton.jit
def _row_value(topk, label, outcomes, rest, softmax, alpha, vocab_size, HAS_LABELS: tl.constexpr):
    """Returns alpha KL(p || q) + (1 - alpha) (-log q_label)."""
    value = 0.0
    if alpha > 0.0:
        log_ratio = tl.fma(outcomes.a + outcomes.log2_inverse_total, _LN2, -topk.log_p)
        terms = kl_terms(outcomes.p, outcomes.q, log_ratio)
        value = tl.sum(tl.where(topk.valid, terms, 0.0), axis=0)
        q_tail = tl.exp2(outcomes.log2_q_tail)
        tail_term = kl_terms(outcomes.p_tail, q_tail, tl.fma(outcomes.log2_q_tail, _LN2, -outcomes.log_p_tail))
        has_tail = tl.sum(topk.valid.to(tl.int32), axis=0) < vocab_size
        value = alpha * (value + tl.where(has_tail, tail_term, 0.0))
    if HAS_LABELS:
        others = rest.total * tl.exp2(rest.shift - softmax.shift) * softmax.inverse_total
        others += tl.sum(tl.where(topk.valid & (topk.column != label.column), outcomes.q, 0.0), axis=0)
        log_q_label = (outcomes.a_label + outcomes.log2_inverse_total) * _LN2
        label_term = kl_terms(1.0, outcomes.q_label, log_q_label)
        value += tl.where(label.column >= 0, (1.0 - alpha) * (others + label_term), 0.0)
    return value


@triton.jit
def _tail_gradient(outcomes, tail, softmax, weight, alpha, ce_share):
    """Returns shift and factor of the gradient in the tail: factor 2^(y c - shift) per column."""
    shift = softmax.shift
    excess = tl.fma(outcomes.log_p_tail, _LOG2E, -outcomes.log2_q_tail)  # log2(p_tail / q_tail)
    factor = alpha + ce_share - tl.where(alpha > 0.0, alpha * tl.exp2(tl.minimum(excess, 60.0)), 0.0)
    factor *= softmax.inverse_total
    if (alpha > 0.0) & (excess > 60.0):  # q_tail may underflow; then only the term of p_tail matters
        shift = tail.shift
        factor = -alpha * outcomes.p_tail / tail.total
    return shift, tl.where(tail.total == 0.0, 0.0, weight * factor)


@triton.jit
def _scaled_softmax(y, c, shift, factor, CAPPED: tl.constexpr, dtype: tl.constexpr):
    g = softcap_backward(tl.exp2(tl.fma(y, c, -shift)) * factor, y, CAPPED)
    return round_to(tl.where(factor != 0.0, g, 0.0), dtype)


@triton.jit
def _write_scaled_softmax(
    x_row,
    grad_row,
    columns,
    shift,
    factor,
    softmax,
    ENTROPY: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Writes factor 2^(y c - shift), through the soft cap, to every column of `grad_row` unless that is None.

    Returns the sum of q log2 q, or 0 without ENTROPY. The pass reads each block before it writes it.
    """
    parts = split_row(x_row.pointer, columns, GROUP)
    edges = load_edges(x_row.pointer, parts)
    if ENTROPY:
        log2_inverse_total = tl.log2(softmax.inverse_total)
        log2_sum = tl.full((GROUPS,), 0.0, tl.float32)
    blocks = tl.cdiv(parts.n_groups, GROUPS)
    first = (blocks - 1) * GROUPS
    x_next = load_groups(x_row.pointer, parts, first, True, "evict_first", GROUPS, GROUP)
    for _ in range(blocks):
        exists = (first + tl.arange(0, GROUPS) < parts.n_groups)[:, None]
        y = apply_softcap(x_next, x_row.tanh_scale, exists, x_row.CAPPED)
        x_next = load_groups(x_row.pointer, parts, first - GROUPS, True, "evict_first", GROUPS, GROUP)
        if ENTROPY:
            a, q = probabilities(y, x_row.c, softmax)
            log2_sum += mean_log2(q, a, log2_inverse_total)
        if grad_row is not None:
            g = _scaled_softmax(y, x_row.c, shift, factor, x_row.CAPPED, grad_row.dtype.element_ty)
            store_groups(grad_row, parts, first, g, GRAD_ALIGNED, GROUPS, GROUP)
        first -= GROUPS
    y = apply_softcap(edges, x_row.tanh_scale, parts.edge_exists, x_row.CAPPED)
    if grad_row is not None:
        store_edges(grad_row, parts, _scaled_softmax(y, x_row.c, shift, factor, x_row.CAPPED, grad_row.dtype.element_ty))
    row_log2_sum = 0.0
    if ENTROPY:
        a, q = probabilities(y, x_row.c, softmax)
        row_log2_sum = tl.sum(log2_sum, axis=0) + mean_log2(q, a, log2_inverse_total)
    return row_log2_sum


@triton.jit
def _write_topk_gradient(grad_row, topk, label, outcomes, tail, c, weight, alpha, ce_share, CAPPED: tl.constexpr):
    """Writes the gradient at the top-k columns and, if it is in the tail, at the label."""
    kl_part = tl.where(alpha > 0.0, alpha * (outcomes.q - outcomes.p), 0.0)
    g = weight * (kl_part + ce_share * (outcomes.q - (topk.column == label.column).to(tl.float32)))
    g = round_to(softcap_backward(g, topk.y, CAPPED), grad_row.dtype.element_ty)
    tl.store(grad_row + topk.column, g, mask=topk.valid)
    tail_share = outcomes.p_tail * (tl.exp2(tl.fma(label.y, c, -tail.shift)) / tail.total)
    kl_part = tl.where(alpha > 0.0, alpha * (outcomes.q_label - tail_share), 0.0)
    kl_part = tl.where(label.y == float("-inf"), 0.0, kl_part)
    g = softcap_backward(weight * (kl_part + ce_share * (outcomes.q_label - 1.0)), label.y, CAPPED)
    tl.store(grad_row + label.column, round_to(g, grad_row.dtype.element_ty), mask=label.in_tail)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_POINTERS + _TARGET_POINTERS)
def topk_span_kl_kernel(
    student,
    grad,
    rows,
    weights,
    state_given,
    value,
    state,
    entropies,
    argmax,
    columns,
    log_p,
    log_tail,
    labels,
    student_inner: tl.int32,
    student_outer_stride: tl.int64,
    student_inner_stride: tl.int64,
    grad_inner: tl.int32,
    grad_outer_stride: tl.int64,
    grad_inner_stride: tl.int64,
    n_rows: tl.int32,
    vocab_size: tl.int32,
    grad_columns: tl.int32,
    k: tl.int32,
    student_c: tl.float32,
    student_tanh_scale: tl.float32,
    grad_scale: tl.float32,
    alpha: tl.float32,
    STUDENT_CAPPED: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    MAX_K: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Writes value, state, statistics and gradient of each row, as far as they have a pointer.

    With `state_given` it skips the pass that computes the totals.
    """
    n_read = tl.load(rows + n_rows)
    for position in range(tl.program_id(0), n_read if grad is None else n_rows, tl.num_programs(0)):
        row = tl.load(rows + position)
        grad_row = None
        if grad is not None:
            grad_row = row_pointer(grad, row, grad_inner, grad_outer_stride, grad_inner_stride)
        written = 0
        if position < n_read:
            pointer = row_pointer(student, row, student_inner, student_outer_stride, student_inner_stride)
            x_row = LogitRow(pointer, student_c, student_tanh_scale, STUDENT_CAPPED, True)
            topk, label = _load_target(x_row, row, columns, log_p, labels, k, vocab_size, MAX_K)

            if state_given is not None:
                rest_softmax = softmax_from_log_sum_exp(tl.load(state_given + n_rows + row))
                rest = _Totals(rest_softmax.shift, 1.0 / rest_softmax.inverse_total)
            else:
                rest, row_best = _rest_pass(x_row, vocab_size, topk, label, argmax is not None, GROUPS, GROUP)
                if argmax is not None:
                    tl.store(argmax + row, row_best)
            tail = _tail_totals(rest, label, student_c)
            if state_given is not None:
                softmax = softmax_from_log_sum_exp(tl.load(state_given + row))
            else:
                totals = _row_totals(topk, tail, student_c)
                softmax = Softmax(totals.shift, 1.0 / totals.total)
                if state is not None:
                    tl.store(state + row, log_sum_exp(totals.shift, totals.total))
                    tl.store(state + n_rows + row, log_sum_exp(rest.shift, rest.total))

            outcomes = _outcomes(topk, label, tail, softmax, student_c, log_tail, row)
            if value is not None:
                row_value = _row_value(topk, label, outcomes, rest, softmax, alpha, vocab_size, labels is not None)
                tl.store(value + row, row_value)

            weight, tail_shift, tail_factor = 0.0, softmax.shift, 0.0
            ce_share = tl.where(label.column >= 0, 1.0 - alpha, 0.0)
            if grad is not None:
                weight = tl.load(weights + row) * grad_scale
                tail_shift, tail_factor = _tail_gradient(outcomes, tail, softmax, weight, alpha, ce_share)
            if grad is not None or entropies is not None:
                tl.debug_barrier()  # in place, all threads must have read the top-k columns before one writes
                if weight != 0.0 or entropies is not None:
                    log2_sum = _write_scaled_softmax(
                        x_row,
                        grad_row,
                        vocab_size,
                        tail_shift,
                        tail_factor,
                        softmax,
                        entropies is not None,
                        GRAD_ALIGNED,
                        GROUPS,
                        GROUP,
                    )
                    written = vocab_size
                    if entropies is not None:
                        tl.store(entropies + row, entropy(log2_sum))
            if grad is not None:
                if weight != 0.0:
                    tl.debug_barrier()  # other threads have just written these columns
                    _write_topk_gradient(
                        grad_row, topk, label, outcomes, tail, student_c, weight, alpha, ce_share, STUDENT_CAPPED
                    )
        if grad is not None:
            fill_zeros(grad_row + written, grad_columns - written, GROUPS, GROUP)
