"""The kernel of the top-k losses, on the grid of `span_kl_kernels`. `sadkernels.reference.topk_span_kl` has the formulas.

The kernel reads a row twice, with the passes of `topk_span_kl_passes`. Between them it computes the value and the state.
The second pass writes the gradient as if every column were in the tail; then the kernel overwrites it at the top-k columns
and the label. Exponents are relative to an integer shift, so no sum leaves the range of float32; the tail has its own shift.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from sadkernels.triton.divergences import kl_terms
from sadkernels.triton.row_io import fill_zeros, round_to, row_pointer
from sadkernels.triton.softmax import (
    LogitRow,
    Softmax,
    entropy,
    integer_shift,
    log_sum_exp,
    probabilities,
    softcap_backward,
    softmax_from_log_sum_exp,
)
from sadkernels.triton.topk_span_kl_passes import Totals, load_target, rest_pass, write_scaled_softmax

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_SIZES = [
    *(f"{x}_{part}" for x in ("student", "grad") for part in ("inner", "outer_stride", "inner_stride")),
    *("n_rows", "vocab_size", "grad_columns", "k"),
]
_POINTERS = ["student", "grad", "rows", "weights", "state_given", "value", "state", "entropies", "argmax"]
_TARGET_POINTERS = ["columns", "log_p", "log_tail", "labels"]


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
def _tail_totals(rest, label, c):
    """Returns the `Totals` of the tail: the rest, and the label if it is in the tail."""
    shift = tl.where(label.in_tail, tl.maximum(rest.shift, integer_shift(label.y * c)), rest.shift)
    label_power = tl.where(label.in_tail, tl.exp2(tl.fma(label.y, c, -shift)), 0.0)
    return Totals(shift, rest.total * tl.exp2(rest.shift - shift) + label_power)


@triton.jit
def _row_totals(topk, tail, c):
    """Returns the `Totals` of all columns: the top-k and the tail."""
    shift = tl.maximum(tail.shift, integer_shift(tl.max(topk.y, axis=0) * c))
    topk_total = tl.sum(tl.where(topk.valid, tl.exp2(tl.fma(topk.y, c, -shift)), 0.0), axis=0)
    return Totals(shift, topk_total + tail.total * tl.exp2(tail.shift - shift))


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
            topk, label = load_target(x_row, row, columns, log_p, labels, k, vocab_size, MAX_K)

            if state_given is not None:
                rest_softmax = softmax_from_log_sum_exp(tl.load(state_given + n_rows + row))
                rest = Totals(rest_softmax.shift, 1.0 / rest_softmax.inverse_total)
            else:
                rest, row_best = rest_pass(x_row, vocab_size, topk, label, argmax is not None, GROUPS, GROUP)
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
                    log2_sum = write_scaled_softmax(
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
