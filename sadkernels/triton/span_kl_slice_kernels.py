"""The kernels of the span KL for few long rows: every row is cut into slices, each a program's.

    slice_totals_kernel   shift and total (and argmax) of every slice
    slice_values_kernel   merges the totals of its row, then sums the divergence over its slice; the gradient of forward_kl
    combine_slices_kernel adds the slices of a row

Each launch waits for the one before it, so nothing spins and nothing is atomic; partial results are merged in the order of
the slices, so the bits never vary. The gradient of the other divergences is `span_kl_backward_kernel`'s, by slices.

A slice begins a multiple of GROUP columns into its row, so it is in step wherever the row is. Scratch memory holds one
number per field, position in `rows` and slice: totals (4, N, slices), best (2, N, slices), sums (4, N, slices).
"""

from __future__ import annotations

import triton
import triton.language as tl

from sadkernels.triton.row_io import fill_zeros, row_pointer
from sadkernels.triton.span_kl_passes import divergence_pass, totals_pass
from sadkernels.triton.softmax import entropy, from_log_sum_exp, log_sum_exp, lowest_best, merge_totals
from sadkernels.triton.span_kl_kernels import POINTERS, SIZES

_SCRATCH = ["totals", "best", "best_column", "sums"]


@triton.jit
def _slices_of(partial, field, position, n_rows, slices, missing, MAX_SLICES: tl.constexpr):
    """(MAX_SLICES,) of one field of a row, `missing` beyond its slices."""
    lane = tl.arange(0, MAX_SLICES)
    return tl.load(partial + (field * n_rows + position) * slices + lane, mask=lane < slices, other=missing)


@triton.jit
def _merged_totals(totals, side, position, n_rows, slices, MAX_SLICES: tl.constexpr):
    """Shift and total of a whole row of one side, 0 the student's."""
    shift = _slices_of(totals, 2 * side, position, n_rows, slices, -3.0e38, MAX_SLICES)
    total = _slices_of(totals, 2 * side + 1, position, n_rows, slices, 0.0, MAX_SLICES)
    return merge_totals(shift, total)


@triton.jit(
    do_not_specialize=[x for x in SIZES if not x.startswith("grad_")],
    do_not_specialize_on_alignment=["student", "teacher", "rows", "totals", "best", "best_column"],
)
def slice_totals_kernel(
    student,
    teacher,
    rows,
    totals,
    best,
    best_column,
    student_inner: tl.int32,
    student_outer_stride: tl.int64,
    student_inner_stride: tl.int64,
    teacher_inner: tl.int32,
    teacher_outer_stride: tl.int64,
    teacher_inner_stride: tl.int64,
    n_rows: tl.int32,
    vocab_size: tl.int32,
    slices: tl.int32,
    slice_columns: tl.int32,
    s_c: tl.float32,
    t_c: tl.float32,
    s_inner: tl.float32,
    t_inner: tl.float32,
    S_CAPPED: tl.constexpr,
    T_CAPPED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """`totals` of one slice; with `best` also its largest logits and their columns."""
    task = tl.program_id(0)
    if task // slices < tl.load(rows + n_rows):
        row = tl.load(rows + task // slices)
        start = (task % slices) * slice_columns
        s_row = row_pointer(student, row, student_inner, student_outer_stride, student_inner_stride) + start
        t_row = row_pointer(teacher, row, teacher_inner, teacher_outer_stride, teacher_inner_stride) + start
        columns = tl.minimum(slice_columns, vocab_size - start)
        s_shift, s_total, t_shift, t_total, s_best, s_column, t_best, t_column = totals_pass(
            s_row, t_row, columns, s_c, t_c, s_inner, t_inner, S_CAPPED, T_CAPPED, best is not None, GROUPS, GROUP
        )
        stride = n_rows * slices
        tl.store(totals + task, s_shift)
        tl.store(totals + stride + task, s_total)
        tl.store(totals + 2 * stride + task, t_shift)
        tl.store(totals + 3 * stride + task, t_total)
        if best is not None:
            tl.store(best + task, s_best)
            tl.store(best + stride + task, t_best)
            tl.store(best_column + task, start + s_column)
            tl.store(best_column + stride + task, start + t_column)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=[*POINTERS, *_SCRATCH])
def slice_values_kernel(
    student,
    teacher,
    grad,
    rows,
    weights,
    lse,
    totals,
    sums,
    student_inner: tl.int32,
    student_outer_stride: tl.int64,
    student_inner_stride: tl.int64,
    teacher_inner: tl.int32,
    teacher_outer_stride: tl.int64,
    teacher_inner_stride: tl.int64,
    grad_inner: tl.int32,
    grad_outer_stride: tl.int64,
    grad_inner_stride: tl.int64,
    n_rows: tl.int32,
    vocab_size: tl.int32,
    grad_columns: tl.int32,
    slices: tl.int32,
    slice_columns: tl.int32,
    s_c: tl.float32,
    t_c: tl.float32,
    s_inner: tl.float32,
    t_inner: tl.float32,
    grad_scale: tl.float32,
    beta: tl.float32,
    DIVERGENCE: tl.constexpr,
    S_CAPPED: tl.constexpr,
    T_CAPPED: tl.constexpr,
    ENTROPIES: tl.constexpr,
    READ_AGAIN: tl.constexpr,
    TEACHER_ALIGNED: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    MAX_SLICES: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """`sums` of one slice: value, E_q[G], p log2 p of teacher and student. Log-sum-exps from `lse`, or from `totals`."""
    task = tl.program_id(0)
    position = task // slices
    row = tl.load(rows + position)
    start = (task % slices) * slice_columns
    end = tl.minimum(start + slice_columns, vocab_size)
    written = start
    part_of_grad = None
    weight = 0.0
    if grad is not None:
        part_of_grad = row_pointer(grad, row, grad_inner, grad_outer_stride, grad_inner_stride) + start
    if position < tl.load(rows + n_rows):
        if grad is not None:
            weight = tl.load(weights + row)
        if lse is None:
            s_shift, s_total = _merged_totals(totals, 0, position, n_rows, slices, MAX_SLICES)
            t_shift, t_total = _merged_totals(totals, 1, position, n_rows, slices, MAX_SLICES)
            s_inverse = 1.0 / s_total
            t_inverse = 1.0 / t_total
        else:
            s_shift, s_inverse = from_log_sum_exp(tl.load(lse + row))
            t_shift, t_inverse = from_log_sum_exp(tl.load(lse + n_rows + row))
        value, mean_pull, t_mean_log2, s_mean_log2 = divergence_pass(
            row_pointer(student, row, student_inner, student_outer_stride, student_inner_stride) + start,
            row_pointer(teacher, row, teacher_inner, teacher_outer_stride, teacher_inner_stride) + start,
            part_of_grad,
            end - start,
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
            DIVERGENCE,
            S_CAPPED,
            T_CAPPED,
            ENTROPIES,
            READ_AGAIN,
            TEACHER_ALIGNED,
            GRAD_ALIGNED,
            GROUPS,
            GROUP,
        )
        stride = n_rows * slices
        tl.store(sums + task, value)
        tl.store(sums + stride + task, mean_pull)
        if ENTROPIES:
            tl.store(sums + 2 * stride + task, t_mean_log2)
            tl.store(sums + 3 * stride + task, s_mean_log2)
        written = end
    if grad is not None:
        zeros_end = tl.where(end == vocab_size, grad_columns, end)
        fill_zeros(part_of_grad + (written - start), zeros_end - written, GROUPS, GROUP)


@triton.jit(do_not_specialize=["n_rows", "slices"], do_not_specialize_on_alignment=[*POINTERS, *_SCRATCH])
def combine_slices_kernel(
    rows,
    lse,
    totals,
    best,
    best_column,
    sums,
    value,
    state,
    entropies,
    argmax,
    n_rows: tl.int32,
    slices: tl.int32,
    MAX_SLICES: tl.constexpr,
):
    """The outputs of one row from those of its slices; each exists if it has a pointer."""
    position = tl.program_id(0)
    if position < tl.load(rows + n_rows):
        row = tl.load(rows + position)
        if state is not None:
            for side in tl.static_range(2):
                if lse is None:
                    shift, total = _merged_totals(totals, side, position, n_rows, slices, MAX_SLICES)
                    tl.store(state + side * n_rows + row, log_sum_exp(shift, total))
                else:
                    tl.store(state + side * n_rows + row, tl.load(lse + side * n_rows + row))
        if value is not None:
            tl.store(value + row, tl.sum(_slices_of(sums, 0, position, n_rows, slices, 0.0, MAX_SLICES), axis=0))
            if state is not None:
                mean_pull = tl.sum(_slices_of(sums, 1, position, n_rows, slices, 0.0, MAX_SLICES), axis=0)
                tl.store(state + 2 * n_rows + row, mean_pull)
        if entropies is not None:
            for side in tl.static_range(2):
                mean_log2 = tl.sum(_slices_of(sums, 2 + side, position, n_rows, slices, 0.0, MAX_SLICES), axis=0)
                tl.store(entropies + side * n_rows + row, entropy(mean_log2))
        if argmax is not None:
            for side in tl.static_range(2):
                top = _slices_of(best, side, position, n_rows, slices, float("-inf"), MAX_SLICES)
                column = _slices_of(best_column, side, position, n_rows, slices, 0, MAX_SLICES)
                _, lowest = lowest_best(top, column)
                tl.store(argmax + side * n_rows + row, lowest)
