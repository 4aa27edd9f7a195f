"""Rows against listed columns and labels, on the grid of `span_kl_kernels`. `sadkernels.reference.topk_span_kl` has the
formulas.

Two passes over the row; between them the outcomes, a vector of the listed columns and a few numbers. Exponents a = c x are
relative to an integer, 2^(a - shift), so that no sum leaves the range of float32: the tail has a shift of its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sadkernels.triton.divergences import kl_terms
from sadkernels.triton.row_io import fill_zeros, narrow, row_pointer
from sadkernels.triton.softcap import as_compared, through_cap
from sadkernels.triton.softmax import entropy, from_log_sum_exp, integer_shift, log_sum_exp
from sadkernels.triton.topk_passes import ABSENT, rest_pass, spread_pass

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_SIZES = [
    *(f"{x}_{part}" for x in ("student", "grad") for part in ("inner", "outer_stride", "inner_stride")),
    *("n_rows", "vocab_size", "grad_columns", "n_listed"),
]
_POINTERS = ["student", "grad", "rows", "weights", "state_given", "value", "state", "entropies", "argmax"]
_LISTS = ["columns", "log_p", "log_tail", "labels"]


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_POINTERS + _LISTS)
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
    n_listed: tl.int32,
    c: tl.float32,
    inner: tl.float32,
    grad_scale: tl.float32,
    alpha: tl.float32,
    CAPPED: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    MOST_LISTED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Whatever has a pointer: value, state, statistics and gradient of a row."""
    read = tl.load(rows + n_rows)
    for position in range(tl.program_id(0), read if grad is None else n_rows, tl.num_programs(0)):
        row = tl.load(rows + position)
        grad_row = None
        if grad is not None:
            grad_row = row_pointer(grad, row, grad_inner, grad_outer_stride, grad_inner_stride)
        written = 0
        if position < read:
            x_row = row_pointer(student, row, student_inner, student_outer_stride, student_inner_stride)
            listed = columns + row.to(tl.int64) * n_listed
            place = tl.arange(0, MOST_LISTED)
            column = tl.load(listed + place, mask=place < n_listed, other=ABSENT)
            before = tl.load(listed + place - 1, mask=(place > 0) & (place < n_listed), other=-1)
            counts = (column < vocab_size) & (column != before)
            log_listed = tl.load(log_p + row.to(tl.int64) * n_listed + place, mask=counts, other=float("-inf"))
            x = tl.load(x_row + column, mask=counts, other=float("-inf"))
            x = as_compared(x, inner, counts, CAPPED)
            label = tl.full((), -1, tl.int32)
            if labels is not None:
                label = tl.load(labels + row)
            alone = (label >= 0) & (tl.max((column == label).to(tl.int32), axis=0) == 0)
            y = tl.load(x_row + label, mask=label >= 0, other=float("-inf"))
            y = as_compared(y, inner, label >= 0, CAPPED)

            if state_given is not None:
                rest_shift, rest_inverse = from_log_sum_exp(tl.load(state_given + n_rows + row))
                rest_total = 1.0 / rest_inverse
            else:
                rest_shift, rest_total, best = rest_pass(
                    x_row,
                    vocab_size,
                    listed,
                    n_listed,
                    column,
                    label,
                    c,
                    inner,
                    CAPPED,
                    argmax is not None,
                    GROUPS,
                    GROUP,
                )
                if argmax is not None:
                    tl.store(argmax + row, best)
            tail_shift = tl.where(alone, tl.maximum(rest_shift, integer_shift(y * c)), rest_shift)
            of_label = tl.where(alone, tl.exp2(tl.fma(y, c, -tail_shift)), 0.0)
            tail_total = rest_total * tl.exp2(rest_shift - tail_shift) + of_label
            if state_given is not None:
                shift, inverse = from_log_sum_exp(tl.load(state_given + row))
            else:
                shift = tl.maximum(tail_shift, integer_shift(tl.max(x, axis=0) * c))
                of_listed = tl.sum(tl.where(counts, tl.exp2(tl.fma(x, c, -shift)), 0.0), axis=0)
                total = of_listed + tail_total * tl.exp2(tail_shift - shift)
                inverse = 1.0 / total
                if state is not None:
                    tl.store(state + row, log_sum_exp(shift, total))
                    tl.store(state + n_rows + row, log_sum_exp(rest_shift, rest_total))

            log2_inverse = tl.log2(inverse)
            a = tl.fma(x, c, -shift)
            q = tl.exp2(a) * inverse
            p = tl.exp2(log_listed * _LOG2E)
            a_label = tl.fma(y, c, -shift)
            q_label = tl.exp2(a_label) * inverse
            log_p_tail = tl.load(log_tail + row)
            p_tail = tl.exp2(log_p_tail * _LOG2E)
            log2_q_tail = (tail_shift - shift) + (tl.log2(tail_total) + log2_inverse)
            if value is not None:
                row_value = 0.0
                if alpha > 0.0:
                    terms = kl_terms(p, q, tl.fma(a + log2_inverse, _LN2, -log_listed))
                    row_value = tl.sum(tl.where(counts, terms, 0.0), axis=0)
                    of_tail = kl_terms(p_tail, tl.exp2(log2_q_tail), tl.fma(log2_q_tail, _LN2, -log_p_tail))
                    has_tail = tl.sum(counts.to(tl.int32), axis=0) < vocab_size
                    row_value = alpha * (row_value + tl.where(has_tail, of_tail, 0.0))
                if labels is not None:
                    others = rest_total * tl.exp2(rest_shift - shift) * inverse
                    others += tl.sum(tl.where(counts & (column != label), q, 0.0), axis=0)
                    of_label = kl_terms(1.0, q_label, (a_label + log2_inverse) * _LN2)
                    row_value += tl.where(label >= 0, (1.0 - alpha) * (others + of_label), 0.0)
                tl.store(value + row, row_value)

            weight = 0.0
            spread_shift, factor = shift, 0.0
            share = tl.where(label >= 0, 1.0 - alpha, 0.0)
            if grad is not None:
                weight = tl.load(weights + row) * grad_scale
                excess = tl.fma(log_p_tail, _LOG2E, -log2_q_tail)  # log2(p_tail / q_tail)
                factor = alpha + share - tl.where(alpha > 0.0, alpha * tl.exp2(tl.minimum(excess, 60.0)), 0.0)
                factor *= inverse
                if (alpha > 0.0) & (excess > 60.0):  # q_tail may be too small for float32; what matters is p_tail
                    spread_shift = tail_shift
                    factor = -alpha * p_tail / tail_total
                factor = tl.where(tail_total == 0.0, 0.0, weight * factor)
            if grad is not None or entropies is not None:
                tl.debug_barrier()  # in place, all threads have read the listed columns before one writes
                if weight != 0.0 or entropies is not None:
                    log2_sum = spread_pass(
                        x_row,
                        grad_row,
                        vocab_size,
                        c,
                        inner,
                        spread_shift,
                        factor,
                        shift,
                        inverse,
                        CAPPED,
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
                    tl.debug_barrier()  # these columns have just been written by other threads
                    of_kl = tl.where(alpha > 0.0, alpha * (q - p), 0.0)
                    g = weight * (of_kl + share * (q - (column == label).to(tl.float32)))
                    g = narrow(through_cap(g, x, CAPPED), grad.dtype.element_ty)
                    tl.store(grad_row + column, g, mask=counts)
                    from_tail = p_tail * (tl.exp2(tl.fma(y, c, -tail_shift)) / tail_total)
                    of_kl = tl.where(alpha > 0.0, alpha * (q_label - from_tail), 0.0)
                    of_kl = tl.where(y == float("-inf"), 0.0, of_kl)
                    g = through_cap(weight * (of_kl + share * (q_label - 1.0)), y, CAPPED)
                    tl.store(grad_row + label, narrow(g, grad.dtype.element_ty), mask=alone)
        if grad is not None:
            fill_zeros(grad_row + written, grad_columns - written, GROUPS, GROUP)
