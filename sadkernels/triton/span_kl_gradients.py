"""The kernels that need no pass before them: the gradient of rows whose state is known, and a gradient times a number.

Their work is (row, slice) pairs, so that few long rows occupy a whole card too; programs walk them as in `span_kl_kernels`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sadkernels.triton.row_io import cut_row, fill_zeros, load_edges, load_groups, narrow, row_pointer, store_groups
from sadkernels.triton.span_kl_passes import gradient_pass
from sadkernels.triton.softmax import from_log_sum_exp
from sadkernels.triton.span_kl_kernels import GRAD_LAYOUT, POINTERS, SIZES


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=POINTERS)
def span_kl_backward_kernel(
    student,
    teacher,
    grad,
    rows,
    weights,
    state,
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
    TEACHER_ALIGNED: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The gradient of rows whose state is known, by slices: one pass."""
    read = tl.load(rows + n_rows)
    for task in range(tl.program_id(0), n_rows * slices, tl.num_programs(0)):
        row = tl.load(rows + task // slices)
        start = (task % slices) * slice_columns
        end = tl.minimum(start + slice_columns, vocab_size)
        grad_row = row_pointer(grad, row, grad_inner, grad_outer_stride, grad_inner_stride)
        written = start
        if task // slices < read:
            weight = tl.load(weights + row)
            if weight != 0.0:
                s_row = row_pointer(student, row, student_inner, student_outer_stride, student_inner_stride)
                t_row = row_pointer(teacher, row, teacher_inner, teacher_outer_stride, teacher_inner_stride)
                s_shift, s_inverse = from_log_sum_exp(tl.load(state + row))
                t_shift, t_inverse = from_log_sum_exp(tl.load(state + n_rows + row))
                mean_pull = 0.0
                if DIVERGENCE != "forward_kl":
                    mean_pull = tl.load(state + 2 * n_rows + row)
                gradient_pass(
                    s_row + start,
                    t_row + start,
                    grad_row + start,
                    end - start,
                    s_c,
                    t_c,
                    s_inner,
                    t_inner,
                    s_shift,
                    s_inverse,
                    t_shift,
                    t_inverse,
                    mean_pull,
                    weight * grad_scale,
                    beta,
                    DIVERGENCE,
                    S_CAPPED,
                    T_CAPPED,
                    TEACHER_ALIGNED,
                    GRAD_ALIGNED,
                    GROUPS,
                    GROUP,
                )
                written = end
        zeros_end = tl.where(end == vocab_size, grad_columns, end)
        fill_zeros(grad_row + written, zeros_end - written, GROUPS, GROUP)


@triton.jit(
    do_not_specialize=[*GRAD_LAYOUT, "n_rows", "grad_columns", "slices", "slice_columns"],
    do_not_specialize_on_alignment=["grad", "kinds", "factor"],
)
def scale_rows_kernel(
    grad,
    kinds,
    factor,
    grad_inner: tl.int32,
    grad_outer_stride: tl.int64,
    grad_inner_stride: tl.int64,
    n_rows: tl.int32,
    grad_columns: tl.int32,
    slices: tl.int32,
    slice_columns: tl.int32,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Multiplies the rows of non-zero kind by a number on the device; done at once when it is 1.

    It is nearly always 1, so there is no index to wait for: a program passes over the rows that stay as they are.
    """
    by = tl.load(factor).to(tl.float32)
    if by != 1.0:
        for task in range(tl.program_id(0), n_rows * slices, tl.num_programs(0)):
            row = task // slices
            if tl.load(kinds + row) != 0:
                start = (task % slices) * slice_columns
                part = row_pointer(grad, row, grad_inner, grad_outer_stride, grad_inner_stride) + start
                head, groups, edge_column, exists = cut_row(part, tl.minimum(slice_columns, grad_columns - start), GROUP)
                for block in range(tl.cdiv(groups, GROUPS)):
                    first = block * GROUPS
                    g = load_groups(part, head, first, groups, True, "evict_first", GROUPS, GROUP).to(tl.float32) * by
                    store_groups(part, head, first, groups, narrow(g, grad.dtype.element_ty), True, GROUPS, GROUP)
                g = load_edges(part, edge_column, exists) * by
                tl.store(part + edge_column, narrow(g, grad.dtype.element_ty), mask=exists)
