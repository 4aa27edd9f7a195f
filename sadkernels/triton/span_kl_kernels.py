"""The kernels of the span KL: values and gradients of whole rows, the backward pass, and the scaling of a gradient.

Each kernel runs on a persistent grid: program i of G processes tasks i, i + G, ... A task of `span_kl_kernel` is a row, a
task of the other two is a (row, slice) pair, so that a few long rows occupy a whole GPU. `span_kl_slice_kernels` has the
forward kernels for a few long rows.

The index of `supervised_rows` orders the rows: the rows to read come first, and the rows that only get zeros come last. So
the programs share both kinds evenly.

Rows of 16-bit logits without a soft cap have two launches of `span_kl_kernel` (ROWS):

    "ordinary"  has the fast passes only, so that it needs few registers. It defers a row that is not ordinary: it replaces
                the row's number in the index by ~row and writes nothing else for it.
    "deferred"  computes the deferred rows, with the passes for any values. It returns at once if there are none, as usual.

Other rows have one launch, "all", with the passes for any values.

Sizes that vary between calls are arguments without specialization, so one compilation serves every N and V. A pointer that
is None removes its code at compile time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sadkernels.triton.divergences import Mixture
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
from sadkernels.triton.softmax import LogitRow, LogSum, entropy, load_log_sum, nats
from sadkernels.triton.span_kl_fast_passes import fast_divergence_pass, fast_gradient_pass
from sadkernels.triton.span_kl_passes import GradRow, divergence_pass, gradient_pass
from sadkernels.triton.span_kl_softmaxes import ordinary_softmaxes, row_softmaxes

_GRAD_LAYOUT = ["grad_inner", "grad_outer_stride", "grad_inner_stride"]
SIZES = [
    *(f"{x}_{part}" for x in ("student", "teacher") for part in ("inner", "outer_stride", "inner_stride")),
    *_GRAD_LAYOUT,
    "n_rows",
    "vocab_size",
    "grad_columns",
    "slices",
    "slice_columns",
]
POINTERS = ["student", "teacher", "grad", "rows", "weights", "lse", "value", "state", "entropies", "argmax"]


@triton.jit
def _write_log_sums(state, lse, s_sum, t_sum, row, n_rows, ORIGINS: tl.constexpr):
    """Writes the `LogSum`s of a row to the state, or those of `lse`. ORIGINS is the state's row for the student's origin."""
    if lse is None:
        tl.store(state + row, nats(s_sum))
        tl.store(state + n_rows + row, nats(t_sum))
        tl.store(state + ORIGINS * n_rows + row, s_sum.origin)
        tl.store(state + (ORIGINS + 1) * n_rows + row, t_sum.origin)
    else:
        for side in tl.static_range(2):
            tl.store(state + side * n_rows + row, tl.load(lse + side * n_rows + row))
            tl.store(state + (ORIGINS + side) * n_rows + row, tl.load(lse + (2 + side) * n_rows + row))


@triton.jit(do_not_specialize=[x for x in SIZES if not x.startswith("slice")], do_not_specialize_on_alignment=POINTERS)
def span_kl_kernel(
    student,
    teacher,
    grad,
    rows,
    weights,
    lse,
    value,
    state,
    entropies,
    argmax,
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
    student_c: tl.float32,
    teacher_c: tl.float32,
    student_tanh_scale: tl.float32,
    teacher_tanh_scale: tl.float32,
    grad_scale: tl.float32,
    teacher_share: tl.float32,
    student_share: tl.float32,
    mixture_border: tl.float32,
    ROWS: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    STUDENT_CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr,
    TEACHER_ALIGNED: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Writes value, state, statistics and gradient of each row, as far as they have a pointer.

    Without `value` it writes the log-sum-exps alone. With `lse` it uses these log-sum-exps in place of the rows' own.
    """
    FAST: tl.constexpr = ROWS == "ordinary"
    ENTROPIES: tl.constexpr = entropies is not None
    GRAD_LATER: tl.constexpr = grad is not None and DIVERGENCE != "forward_kl"
    tl.static_assert(not FAST or (value is not None and lse is None), "the fast passes compute value and log-sum-exps")
    mixture = Mixture(teacher_share, student_share, mixture_border)
    n_read = tl.load(rows + n_rows)
    positions = n_rows
    if ROWS == "deferred":
        positions = tl.where(tl.load(rows + n_rows + 1) != 0, n_read, 0)
    elif grad is None:
        positions = n_read
    for position in range(tl.program_id(0), positions, tl.num_programs(0)):
        row = tl.load(rows + position)
        if FAST:
            n_read = tl.load(rows + n_rows)  # again, so that no register holds it during the passes
        read = position < n_read
        written = 0
        if ROWS == "deferred":
            read = row < 0
            row = tl.where(read, ~row, row)
            written = grad_columns  # by the launch before, if it did not defer the row
        grad_row = None
        if grad is not None:
            grad_row = row_pointer(grad, row, grad_inner, grad_outer_stride, grad_inner_stride)
        if read:
            s_row = row_pointer(student, row, student_inner, student_outer_stride, student_inner_stride)
            t_row = row_pointer(teacher, row, teacher_inner, teacher_outer_stride, teacher_inner_stride)
            s = LogitRow(s_row, student_c, student_tanh_scale, STUDENT_CAPPED)
            t = LogitRow(t_row, teacher_c, teacher_tanh_scale, TEACHER_CAPPED)
            suits = True
            if FAST:
                s_softmax, t_softmax, suits = ordinary_softmaxes(
                    s, t, vocab_size, mixture, argmax is not None, DIVERGENCE, GROUPS, GROUP
                )
            elif lse is None or argmax is not None:
                s_softmax, t_softmax = row_softmaxes(s, t, vocab_size, argmax is not None, GROUPS, GROUP)
            written = grad_columns
            if suits:
                if argmax is not None:
                    tl.store(argmax + row, s_softmax.argmax)
                    tl.store(argmax + n_rows + row, t_softmax.argmax)
                if lse is None:
                    s_sum = LogSum(s_softmax.origin, s_softmax.log2_sum)
                    t_sum = LogSum(t_softmax.origin, t_softmax.log2_sum)
                else:
                    s_sum = load_log_sum(lse, lse + 2 * n_rows, row)
                    t_sum = load_log_sum(lse + n_rows, lse + 3 * n_rows, row)
                if state is not None:
                    _write_log_sums(state, lse, s_sum, t_sum, row, n_rows, 2 if value is None else 3)
                if value is not None:
                    weight = 0.0
                    if grad is not None:
                        weight = tl.load(weights + row)
                        written = tl.where(weight != 0.0, vocab_size, 0)
                    g = GradRow(grad_row, weight, grad_scale)
                    if FAST:
                        sums = fast_divergence_pass(
                            s,
                            t,
                            s_sum,
                            t_sum,
                            vocab_size,
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
                    else:
                        sums = divergence_pass(
                            s,
                            t,
                            s_sum,
                            t_sum,
                            vocab_size,
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
                    tl.store(value + row, sums.value)
                    if state is not None:
                        tl.store(state + 2 * n_rows + row, sums.mean_dlogp)
                    if ENTROPIES:
                        tl.store(entropies + row, entropy(sums.teacher_mean_log2))
                        tl.store(entropies + n_rows + row, entropy(sums.student_mean_log2))
                    if GRAD_LATER:
                        if weight != 0.0:
                            mean = sums.mean_dlogp
                            if FAST:
                                fast_gradient_pass(
                                    s,
                                    t,
                                    s_sum,
                                    t_sum,
                                    vocab_size,
                                    g,
                                    mean,
                                    mixture,
                                    DIVERGENCE,
                                    TEACHER_ALIGNED,
                                    GRAD_ALIGNED,
                                    GROUPS,
                                    GROUP,
                                )
                            else:
                                gradient_pass(
                                    s,
                                    t,
                                    s_sum,
                                    t_sum,
                                    vocab_size,
                                    g,
                                    mean,
                                    mixture,
                                    DIVERGENCE,
                                    TEACHER_ALIGNED,
                                    GRAD_ALIGNED,
                                    GROUPS,
                                    GROUP,
                                )
            else:
                tl.store(rows + position, ~row)
                tl.store(rows + n_rows + 1, 1)  # all programs write the same number
        if grad is not None:
            fill_zeros(grad_row + written, grad_columns - written, GROUPS, GROUP)


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
    TEACHER_ALIGNED: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Writes the gradient of rows with a known state, in one pass over each slice."""
    mixture = Mixture(teacher_share, student_share, mixture_border)
    n_read = tl.load(rows + n_rows)
    for task in range(tl.program_id(0), n_rows * slices, tl.num_programs(0)):
        row = tl.load(rows + task // slices)
        start = (task % slices) * slice_columns
        end = tl.minimum(start + slice_columns, vocab_size)
        grad_row = row_pointer(grad, row, grad_inner, grad_outer_stride, grad_inner_stride)
        written = start
        if task // slices < n_read:
            weight = tl.load(weights + row)
            if weight != 0.0:
                s_row = row_pointer(student, row, student_inner, student_outer_stride, student_inner_stride)
                t_row = row_pointer(teacher, row, teacher_inner, teacher_outer_stride, teacher_inner_stride)
                s_log_sum = load_log_sum(state, state + 3 * n_rows, row)
                t_log_sum = load_log_sum(state + n_rows, state + 4 * n_rows, row)
                mean_dlogp = 0.0
                if DIVERGENCE != "forward_kl":
                    mean_dlogp = tl.load(state + 2 * n_rows + row)
                s = LogitRow(s_row + start, student_c, student_tanh_scale, STUDENT_CAPPED)
                t = LogitRow(t_row + start, teacher_c, teacher_tanh_scale, TEACHER_CAPPED)
                g = GradRow(grad_row + start, weight, grad_scale)
                gradient_pass(
                    s,
                    t,
                    s_log_sum,
                    t_log_sum,
                    end - start,
                    g,
                    mean_dlogp,
                    mixture,
                    DIVERGENCE,
                    TEACHER_ALIGNED,
                    GRAD_ALIGNED,
                    GROUPS,
                    GROUP,
                )
                written = end
        zeros_end = tl.where(end == vocab_size, grad_columns, end)
        fill_zeros(grad_row + written, zeros_end - written, GROUPS, GROUP)


@triton.jit(
    do_not_specialize=[*_GRAD_LAYOUT, "n_rows", "grad_columns", "slices", "slice_columns"],
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
    """Multiplies the rows of non-zero kind by the number at `factor`; returns at once if the number is 1.

    The factor is nearly always 1. Therefore no launch computes an index of the rows, and the programs skip rows of kind 0.
    """
    by = tl.load(factor).to(tl.float32)
    if by != 1.0:
        for task in range(tl.program_id(0), n_rows * slices, tl.num_programs(0)):
            row = task // slices
            if tl.load(kinds + row) != 0:
                start = (task % slices) * slice_columns
                pointer = row_pointer(grad, row, grad_inner, grad_outer_stride, grad_inner_stride) + start
                parts = split_row(pointer, tl.minimum(slice_columns, grad_columns - start), GROUP)
                for block in range(tl.cdiv(parts.n_groups, GROUPS)):
                    first = block * GROUPS
                    g = load_groups(pointer, parts, first, True, "evict_first", GROUPS, GROUP).to(tl.float32) * by
                    store_groups(pointer, parts, first, round_to(g, grad.dtype.element_ty), True, GROUPS, GROUP)
                g = load_edges(pointer, parts) * by
                store_edges(pointer, parts, round_to(g, grad.dtype.element_ty))
