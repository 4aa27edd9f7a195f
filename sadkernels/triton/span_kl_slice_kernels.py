"""The forward kernels of the span KL for a few long rows: one program processes one slice of a row.

    slice_totals_kernel    log-sum and argmax of every slice
    slice_values_kernel    merges the log-sums of the row, then sums the divergence over the slice; writes the gradient of
                           forward_kl
    combine_slices_kernel  adds the sums of a row's slices

The launches run one after the other, so no program spins and no operation is atomic. Partial results merge in the order of
the slices, so the result has the same bits on every run. `span_kl_backward_kernel` computes the gradient of the other
divergences.

A slice starts at a multiple of GROUP columns in its row, so its groups are aligned if the row's groups are. The scratch
buffers hold one number per field, position in `rows`, and slice: totals (4, N, slices), best and best_column (2, N, slices),
sums (4, N, slices).
"""

from __future__ import annotations

import triton
import triton.language as tl

from sadkernels.triton.divergences import Mixture
from sadkernels.triton.row_io import fill_zeros, row_pointer
from sadkernels.triton.softmax import (
    LogitRow,
    entropy,
    load_log_sum,
    merge_argmax,
    merge_log_sums,
    nats,
)
from sadkernels.triton.span_kl_kernels import POINTERS, SIZES
from sadkernels.triton.span_kl_passes import GradRow, divergence_pass
from sadkernels.triton.span_kl_softmaxes import row_softmaxes

_SCRATCH = ["totals", "best", "best_column", "sums"]


@triton.jit
def _load_slices(scratch, field, position, n_rows, slices, missing, MAX_SLICES: tl.constexpr):
    """Loads one field (MAX_SLICES,) of all slices of a row; lanes beyond the row's slices become `missing`."""
    lane = tl.arange(0, MAX_SLICES)
    return tl.load(scratch + (field * n_rows + position) * slices + lane, mask=lane < slices, other=missing)


@triton.jit
def _merged_log_sum(totals, side, c, position, n_rows, slices, MAX_SLICES: tl.constexpr):
    """Returns the `LogSum` of a whole row; `side` is 0 for the student and 1 for the teacher."""
    origin = _load_slices(totals, 2 * side, position, n_rows, slices, 0.0, MAX_SLICES)
    log2_sum = _load_slices(totals, 2 * side + 1, position, n_rows, slices, float("-inf"), MAX_SLICES)
    return merge_log_sums(origin, log2_sum, c)


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
    student_c: tl.float32,
    teacher_c: tl.float32,
    student_tanh_scale: tl.float32,
    teacher_tanh_scale: tl.float32,
    STUDENT_CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Writes the `totals` of one slice; with `best` also its largest logits and their columns."""
    task = tl.program_id(0)
    if task // slices < tl.load(rows + n_rows):
        row = tl.load(rows + task // slices)
        start = (task % slices) * slice_columns
        s_row = row_pointer(student, row, student_inner, student_outer_stride, student_inner_stride) + start
        t_row = row_pointer(teacher, row, teacher_inner, teacher_outer_stride, teacher_inner_stride) + start
        columns = tl.minimum(slice_columns, vocab_size - start)
        s = LogitRow(s_row, student_c, student_tanh_scale, STUDENT_CAPPED)
        t = LogitRow(t_row, teacher_c, teacher_tanh_scale, TEACHER_CAPPED)
        s_softmax, t_softmax = row_softmaxes(s, t, columns, best is not None, GROUPS, GROUP)
        stride = n_rows * slices
        tl.store(totals + task, s_softmax.origin)
        tl.store(totals + stride + task, s_softmax.log2_sum)
        tl.store(totals + 2 * stride + task, t_softmax.origin)
        tl.store(totals + 3 * stride + task, t_softmax.log2_sum)
        if best is not None:
            tl.store(best + task, s_softmax.best)
            tl.store(best + stride + task, t_softmax.best)
            tl.store(best_column + task, start + s_softmax.argmax)
            tl.store(best_column + stride + task, start + t_softmax.argmax)


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
    student_c: tl.float32,
    teacher_c: tl.float32,
    student_tanh_scale: tl.float32,
    teacher_tanh_scale: tl.float32,
    grad_scale: tl.float32,
    teacher_share: tl.float32,
    student_share: tl.float32,
    mixture_border: tl.float32,
    DIVERGENCE: tl.constexpr,
    STUDENT_CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr,
    ENTROPIES: tl.constexpr,
    GRAD_LATER: tl.constexpr,
    TEACHER_ALIGNED: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    MAX_SLICES: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Writes the `sums` of one slice: value, E_q[dlogp], p log2 p, q log2 q; with `grad` also the gradient of forward_kl.

    The log-sum-exps come from `lse`, or from `totals` if `lse` is None.
    """
    task = tl.program_id(0)
    position = task // slices
    row = tl.load(rows + position)
    start = (task % slices) * slice_columns
    end = tl.minimum(start + slice_columns, vocab_size)
    written = start
    grad_slice = None
    weight = 0.0
    if grad is not None:
        grad_slice = row_pointer(grad, row, grad_inner, grad_outer_stride, grad_inner_stride) + start
    if position < tl.load(rows + n_rows):
        if grad is not None:
            weight = tl.load(weights + row)
        if lse is None:
            s_log_sum = _merged_log_sum(totals, 0, student_c, position, n_rows, slices, MAX_SLICES)
            t_log_sum = _merged_log_sum(totals, 1, teacher_c, position, n_rows, slices, MAX_SLICES)
        else:
            s_log_sum = load_log_sum(lse, lse + 2 * n_rows, row)
            t_log_sum = load_log_sum(lse + n_rows, lse + 3 * n_rows, row)
        s_row = row_pointer(student, row, student_inner, student_outer_stride, student_inner_stride) + start
        t_row = row_pointer(teacher, row, teacher_inner, teacher_outer_stride, teacher_inner_stride) + start
        s = LogitRow(s_row, student_c, student_tanh_scale, STUDENT_CAPPED)
        t = LogitRow(t_row, teacher_c, teacher_tanh_scale, TEACHER_CAPPED)
        g = GradRow(grad_slice, weight, grad_scale)
        mixture = Mixture(teacher_share, student_share, mixture_border)
        slice_sums = divergence_pass(
            s,
            t,
            s_log_sum,
            t_log_sum,
            end - start,
            g,
            mixture,
            DIVERGENCE,
            ENTROPIES,
            GRAD_LATER,
            TEACHER_ALIGNED,
            GRAD_ALIGNED,
            GROUPS,
            GROUP,
        )
        stride = n_rows * slices
        tl.store(sums + task, slice_sums.value)
        tl.store(sums + stride + task, slice_sums.mean_dlogp)
        if ENTROPIES:
            tl.store(sums + 2 * stride + task, slice_sums.teacher_mean_log2)
            tl.store(sums + 3 * stride + task, slice_sums.student_mean_log2)
        written = tl.where(weight != 0.0, end, start)
    if grad is not None:
        zeros_end = tl.where(end == vocab_size, grad_columns, end)
        fill_zeros(grad_slice + (written - start), zeros_end - written, GROUPS, GROUP)


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
    student_c: tl.float32,
    teacher_c: tl.float32,
    MAX_SLICES: tl.constexpr,
):
    """Writes the outputs of one row that have a pointer, from the results of its slices."""
    ORIGINS: tl.constexpr = 2 if value is None else 3  # the first row of the origins in the state
    position = tl.program_id(0)
    if position < tl.load(rows + n_rows):
        row = tl.load(rows + position)
        if state is not None:
            for side in tl.static_range(2):
                if lse is None:
                    c = teacher_c if side == 1 else student_c
                    log_sum = _merged_log_sum(totals, side, c, position, n_rows, slices, MAX_SLICES)
                    tl.store(state + side * n_rows + row, nats(log_sum))
                    tl.store(state + (ORIGINS + side) * n_rows + row, log_sum.origin)
                else:
                    tl.store(state + side * n_rows + row, tl.load(lse + side * n_rows + row))
                    tl.store(state + (ORIGINS + side) * n_rows + row, tl.load(lse + (2 + side) * n_rows + row))
        if value is not None:
            tl.store(value + row, tl.sum(_load_slices(sums, 0, position, n_rows, slices, 0.0, MAX_SLICES), axis=0))
            if state is not None:
                mean_dlogp = tl.sum(_load_slices(sums, 1, position, n_rows, slices, 0.0, MAX_SLICES), axis=0)
                tl.store(state + 2 * n_rows + row, mean_dlogp)
        if entropies is not None:
            for side in tl.static_range(2):
                mean_log2 = tl.sum(_load_slices(sums, 2 + side, position, n_rows, slices, 0.0, MAX_SLICES), axis=0)
                tl.store(entropies + side * n_rows + row, entropy(mean_log2))
        if argmax is not None:
            for side in tl.static_range(2):
                top = _load_slices(best, side, position, n_rows, slices, float("-inf"), MAX_SLICES)
                column = _load_slices(best_column, side, position, n_rows, slices, 0, MAX_SLICES)
                _, lowest = merge_argmax(top, column)
                tl.store(argmax + side * n_rows + row, lowest)
