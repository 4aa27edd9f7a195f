"""The kernels of the span KL, one program per row. A row that is not read costs its zeros and nothing else.

Every size that varies between calls is a plain argument that is not specialised: one compilation serves every N and V.
A pointer that is None removes its code.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sadkernels.triton.row_io import cut_row, fill_zeros, load_edges, load_groups, narrow, row_pointer, store_groups
from sadkernels.triton.softmax import from_log_sum_exp, probabilities
from sadkernels.triton.span_kl_row import read_row

_GRAD_LAYOUT = ["grad_inner", "grad_outer_stride", "grad_inner_stride"]
_LAYOUTS = [f"{x}_{part}" for x in ("student", "teacher") for part in ("inner", "outer_stride", "inner_stride")]
_SIZES = [*_LAYOUTS, *_GRAD_LAYOUT, "n_rows", "vocab_size", "grad_columns"]
_POINTERS = ["student", "teacher", "grad", "kinds", "weights", "lse"]


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=[*_POINTERS, "kl", "extras"])
def span_kl_kernel(
    student,
    teacher,
    grad,
    kinds,
    weights,
    kl,
    lse,
    extras,
    student_inner: tl.int32,
    student_outer_stride: tl.int64,
    student_inner_stride: tl.int64,
    teacher_inner: tl.int32,
    teacher_outer_stride: tl.int64,
    teacher_inner_stride: tl.int64,
    grad_inner: tl.int32,
    grad_outer_stride: tl.int64,
    grad_inner_stride: tl.int64,
    n_rows: tl.int64,
    vocab_size: tl.int32,
    grad_columns: tl.int32,
    c: tl.float32,
    inverse_temperature: tl.float32,
    TEACHER_ALIGNED: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """KL of a row, and what else has a pointer: its gradient, log-sum-exps, statistics."""
    row = tl.program_id(0)
    grad_row = None
    weight = 0.0
    if grad is not None:
        grad_row = row_pointer(grad, row, grad_inner, grad_outer_stride, grad_inner_stride)
        weight = tl.load(weights + row)
    written = 0
    if tl.load(kinds + row) != 0:
        s_row = row_pointer(student, row, student_inner, student_outer_stride, student_inner_stride)
        t_row = row_pointer(teacher, row, teacher_inner, teacher_outer_stride, teacher_inner_stride)
        read_row(
            row,
            s_row,
            t_row,
            grad_row,
            weight,
            kl,
            lse,
            extras,
            n_rows,
            vocab_size,
            c,
            inverse_temperature,
            TEACHER_ALIGNED,
            GRAD_ALIGNED,
            GROUPS,
            GROUP,
        )
        written = vocab_size
    else:
        tl.store(kl + row, 0.0)
        if lse is not None:
            tl.store(lse + row, 0.0)
            tl.store(lse + n_rows + row, 0.0)
        if extras is not None:
            tl.store(extras + row, 0.0)
            tl.store(extras + n_rows + row, 0.0)
            tl.store(extras + 2 * n_rows + row, 0.0)
    if grad is not None:
        fill_zeros(grad_row + written, grad_columns - written, GROUPS, GROUP)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_POINTERS)
def span_kl_backward_kernel(
    student,
    teacher,
    grad,
    kinds,
    weights,
    lse,
    student_inner: tl.int32,
    student_outer_stride: tl.int64,
    student_inner_stride: tl.int64,
    teacher_inner: tl.int32,
    teacher_outer_stride: tl.int64,
    teacher_inner_stride: tl.int64,
    grad_inner: tl.int32,
    grad_outer_stride: tl.int64,
    grad_inner_stride: tl.int64,
    n_rows: tl.int64,
    vocab_size: tl.int32,
    grad_columns: tl.int32,
    c: tl.float32,
    inverse_temperature: tl.float32,
    TEACHER_ALIGNED: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """weight (q - p) / T of a row whose log-sum-exps are known: one pass, every block read before it is written."""
    row = tl.program_id(0)
    grad_row = row_pointer(grad, row, grad_inner, grad_outer_stride, grad_inner_stride)
    weight = tl.load(weights + row)
    written = 0
    if (tl.load(kinds + row) != 0) & (weight != 0.0):
        s_row = row_pointer(student, row, student_inner, student_outer_stride, student_inner_stride)
        t_row = row_pointer(teacher, row, teacher_inner, teacher_outer_stride, teacher_inner_stride)
        head, groups, edge_column, edge_exists = cut_row(s_row, vocab_size, GROUP)
        s_edges = load_edges(s_row, edge_column, edge_exists)
        t_edges = load_edges(t_row, edge_column, edge_exists)
        s_shift, s_inverse = from_log_sum_exp(tl.load(lse + row))
        t_shift, t_inverse = from_log_sum_exp(tl.load(lse + n_rows + row))
        factor = weight * inverse_temperature
        s_next = load_groups(s_row, head, 0, groups, True, "evict_first", GROUPS, GROUP)
        t_next = load_groups(t_row, head, 0, groups, TEACHER_ALIGNED, "evict_first", GROUPS, GROUP)
        for block in range(tl.cdiv(groups, GROUPS)):
            first = block * GROUPS
            s = s_next.to(tl.float32)
            t = t_next.to(tl.float32)
            s_next = load_groups(s_row, head, first + GROUPS, groups, True, "evict_first", GROUPS, GROUP)
            t_next = load_groups(t_row, head, first + GROUPS, groups, TEACHER_ALIGNED, "evict_first", GROUPS, GROUP)
            _, q = probabilities(s, c, s_shift, s_inverse)
            _, p = probabilities(t, c, t_shift, t_inverse)
            g = narrow((q - p) * factor, grad.dtype.element_ty)
            store_groups(grad_row, head, first, groups, g, GRAD_ALIGNED, GROUPS, GROUP)
        _, q = probabilities(s_edges, c, s_shift, s_inverse)
        _, p = probabilities(t_edges, c, t_shift, t_inverse)
        tl.store(grad_row + edge_column, narrow((q - p) * factor, grad.dtype.element_ty), mask=edge_exists)
        written = vocab_size
    fill_zeros(grad_row + written, grad_columns - written, GROUPS, GROUP)


@triton.jit(do_not_specialize=[*_GRAD_LAYOUT, "grad_columns"], do_not_specialize_on_alignment=["grad", "kinds", "factor"])
def scale_rows_kernel(
    grad,
    kinds,
    factor,
    grad_inner: tl.int32,
    grad_outer_stride: tl.int64,
    grad_inner_stride: tl.int64,
    grad_columns: tl.int32,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Multiplies the rows of non-zero kind by a number on the device; done at once when it is 1."""
    row = tl.program_id(0)
    by = tl.load(factor).to(tl.float32)
    if (by != 1.0) & (tl.load(kinds + row) != 0):
        grad_row = row_pointer(grad, row, grad_inner, grad_outer_stride, grad_inner_stride)
        head, groups, edge_column, edge_exists = cut_row(grad_row, grad_columns, GROUP)
        for block in range(tl.cdiv(groups, GROUPS)):
            g = load_groups(grad_row, head, block * GROUPS, groups, True, "evict_first", GROUPS, GROUP).to(tl.float32) * by
            store_groups(grad_row, head, block * GROUPS, groups, narrow(g, grad.dtype.element_ty), True, GROUPS, GROUP)
        g = load_edges(grad_row, edge_column, edge_exists) * by
        tl.store(grad_row + edge_column, narrow(g, grad.dtype.element_ty), mask=edge_exists)
