"""The kernel of the top-k losses, on the grid of `span_kl_kernels`. `sadkernels.reference.topk_span_kl` has the formulas.

The kernel reads a row twice, with the passes of `topk_span_kl_passes`. Between them it computes the value and the state.
The top-k columns stay in registers: up to k = 4096 without spills (sm_90), and a larger k is correct, but spills. The second
pass writes the gradient as if every column were in the tail; then the kernel overwrites it at the top-k columns and the
label. Every sum is relative to an origin of its own, so none leaves the range of float32.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from sadkernels.triton.divergences import kl_terms
from sadkernels.triton.row_io import fill_zeros, round_to, row_pointer
from sadkernels.triton.softmax import (
    LOWEST,
    LogitRow,
    LogSum,
    entropy,
    load_log_sum,
    log2_probabilities,
    log_sum_of,
    nats,
    softcap_backward,
)
from sadkernels.triton.topk_span_kl_passes import (
    Totals,
    load_target,
    merge_two,
    rest_pass,
    totals_of,
    write_scaled_softmax,
)

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_SIZES = [
    *(f"{x}_{part}" for x in ("student", "grad") for part in ("inner", "outer_stride", "inner_stride")),
    *("n_rows", "vocab_size", "grad_columns", "k"),
]
_POINTERS = ["student", "grad", "rows", "weights", "state_given", "value", "state", "entropies", "argmax"]
_TARGET_POINTERS = ["columns", "log_p", "log_tail", "labels"]


class _Outcomes(NamedTuple):
    """The probabilities of the top-k columns, the label and the tail: q of the student, p of the teacher."""

    log2_q: tl.tensor
    q: tl.tensor
    p: tl.tensor
    log2_q_label: tl.tensor
    q_label: tl.tensor
    log_p_tail: tl.tensor
    p_tail: tl.tensor
    log2_q_tail: tl.tensor


@triton.jit
def _tail_totals(rest, label, c):
    """Returns the `Totals` of the tail: the rest, and the label if it is in the tail."""
    label_y = tl.where(label.in_tail, label.y, float("-inf"))
    label_total = tl.where(label_y == float("-inf"), 0.0, 1.0)
    return merge_two(rest, Totals(tl.maximum(label_y, LOWEST), label_total), c)


@triton.jit
def _row_totals(topk, tail, c):
    """Returns the `Totals` of all columns: the top-k and the tail."""
    top = tl.maximum(tl.max(topk.y, axis=0), LOWEST)
    return merge_two(tail, totals_of(top, tl.sum(tl.where(topk.valid, tl.exp2((topk.y - top) * c), 0.0), axis=0)), c)


@triton.jit
def _outcomes(topk, label, tail, log_sum, c, log_tail, row):
    """Returns the `_Outcomes` of a row."""
    log2_q = log2_probabilities(topk.y, c, log_sum)
    p = tl.exp2(topk.log_p * _LOG2E)
    log2_q_label = log2_probabilities(label.y, c, log_sum)
    log_p_tail = tl.load(log_tail + row)
    p_tail = tl.exp2(log_p_tail * _LOG2E)
    log2_q_tail = tl.log2(tail.total) + log2_probabilities(tail.origin, c, log_sum)
    return _Outcomes(log2_q, tl.exp2(log2_q), p, log2_q_label, tl.exp2(log2_q_label), log_p_tail, p_tail, log2_q_tail)


@triton.jit
def _row_value(topk, label, outcomes, rest, log_sum, c, alpha, vocab_size, HAS_LABELS: tl.constexpr):
    """Returns alpha KL(p || q) + (1 - alpha) (-log q_label)."""
    value = 0.0
    if alpha > 0.0:
        log_ratio = tl.fma(outcomes.log2_q, _LN2, -topk.log_p)
        terms = kl_terms(outcomes.p, outcomes.q, log_ratio)
        value = tl.sum(tl.where(topk.valid, terms, 0.0), axis=0)
        q_tail = tl.exp2(outcomes.log2_q_tail)
        tail_term = kl_terms(outcomes.p_tail, q_tail, tl.fma(outcomes.log2_q_tail, _LN2, -outcomes.log_p_tail))
        has_tail = tl.sum(topk.valid.to(tl.int32), axis=0) < vocab_size
        value = alpha * (value + tl.where(has_tail, tail_term, 0.0))
    if HAS_LABELS:
        others = rest.total * tl.exp2(log2_probabilities(rest.origin, c, log_sum))
        others += tl.sum(tl.where(topk.valid & (topk.column != label.column), outcomes.q, 0.0), axis=0)
        label_term = kl_terms(1.0, outcomes.q_label, outcomes.log2_q_label * _LN2)
        value += tl.where(label.column >= 0, (1.0 - alpha) * (others + label_term), 0.0)
    return value


@triton.jit
def _tail_gradient(outcomes, tail, log_sum, weight, alpha, ce_share):
    """Returns the `LogSum` and the factor of the gradient in the tail: factor 2^((y - origin) c - log2_sum) per column."""
    origin, log2_sum = log_sum.origin, log_sum.log2_sum
    excess = tl.fma(outcomes.log_p_tail, _LOG2E, -outcomes.log2_q_tail)  # log2(p_tail / q_tail)
    factor = alpha + ce_share - tl.where(alpha > 0.0, alpha * tl.exp2(tl.minimum(excess, 60.0)), 0.0)
    if (alpha > 0.0) & (excess > 60.0):  # q_tail may underflow; then only the term of p_tail matters
        origin, log2_sum = tail.origin, 0.0
        factor = -alpha * outcomes.p_tail / tail.total
    return LogSum(origin, log2_sum), tl.where(tail.total == 0.0, 0.0, weight * factor)


@triton.jit
def _write_topk_gradient(grad_row, topk, label, outcomes, tail, c, weight, alpha, ce_share, CAPPED: tl.constexpr):
    """Writes the gradient at the top-k columns and, if it is in the tail, at the label."""
    kl_part = tl.where(alpha > 0.0, alpha * (outcomes.q - outcomes.p), 0.0)
    g = weight * (kl_part + ce_share * (outcomes.q - (topk.column == label.column).to(tl.float32)))
    g = round_to(softcap_backward(g, topk.y, CAPPED), grad_row.dtype.element_ty)
    tl.store(grad_row + topk.column, g, mask=topk.valid)
    tail_share = outcomes.p_tail * (tl.exp2((label.y - tail.origin) * c) / tail.total)
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
            x_row = LogitRow(pointer, student_c, student_tanh_scale, STUDENT_CAPPED)
            topk, label = load_target(x_row, row, columns, log_p, labels, k, vocab_size, MAX_K)

            if state_given is not None:
                rest_total = tl.exp(tl.load(state_given + n_rows + row))
                rest = totals_of(tl.load(state_given + 3 * n_rows + row), rest_total)
            else:
                rest, row_best = rest_pass(x_row, vocab_size, topk, label, argmax is not None, GROUPS, GROUP)
                if argmax is not None:
                    tl.store(argmax + row, row_best)
            tail = _tail_totals(rest, label, student_c)
            if state_given is not None:
                log_sum = load_log_sum(state_given, state_given + 2 * n_rows, row)
            else:
                totals = _row_totals(topk, tail, student_c)
                log_sum = log_sum_of(totals.origin, totals.total)
                if state is not None:
                    tl.store(state + row, nats(log_sum))
                    tl.store(state + n_rows + row, tl.log(rest.total))
                    tl.store(state + 2 * n_rows + row, log_sum.origin)
                    tl.store(state + 3 * n_rows + row, tl.where(rest.total == 0.0, 0.0, rest.origin))

            outcomes = _outcomes(topk, label, tail, log_sum, student_c, log_tail, row)
            if value is not None:
                row_value = _row_value(
                    topk, label, outcomes, rest, log_sum, student_c, alpha, vocab_size, labels is not None
                )
                tl.store(value + row, row_value)

            weight, divisor, tail_factor = 0.0, log_sum, 0.0
            ce_share = tl.where(label.column >= 0, 1.0 - alpha, 0.0)
            if grad is not None:
                weight = tl.load(weights + row) * grad_scale
                divisor, tail_factor = _tail_gradient(outcomes, tail, log_sum, weight, alpha, ce_share)
            if grad is not None or entropies is not None:
                tl.debug_barrier()  # in place, all threads must have read the top-k columns before one writes
                if weight != 0.0 or entropies is not None:
                    log2_sum = write_scaled_softmax(
                        x_row,
                        grad_row,
                        vocab_size,
                        divisor,
                        tail_factor,
                        weight != 0.0,
                        log_sum,
                        entropies is not None,
                        GRAD_ALIGNED,
                        GROUPS,
                        GROUP,
                    )
                    if entropies is not None:
                        tl.store(entropies + row, entropy(log2_sum))
            if grad is not None:
                if weight != 0.0:
                    written = vocab_size
                    tl.debug_barrier()  # other threads have just written these columns
                    _write_topk_gradient(
                        grad_row, topk, label, outcomes, tail, student_c, weight, alpha, ce_share, STUDENT_CAPPED
                    )
        if grad is not None:
            fill_zeros(grad_row + written, grad_columns - written, GROUPS, GROUP)
