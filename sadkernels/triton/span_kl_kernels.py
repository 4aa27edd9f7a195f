"""The span KL of whole rows, on a grid that stays: each program takes a row, then the next one of its own.

Rows come from the index of `supervised_rows`: program i of G walks positions i, i + G, ...; the rows that are read come
first there, the others, which get zeros, last, so both kinds of work are shared out evenly.

Every size that varies between calls is a plain argument that is not specialised: one compilation serves every N and V.
A pointer that is None removes its code.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sadkernels.triton.row_io import fill_zeros, row_pointer
from sadkernels.triton.span_kl_passes import divergence_pass, gradient_pass, totals_pass
from sadkernels.triton.softmax import entropy, from_log_sum_exp, log_sum_exp

GRAD_LAYOUT = ["grad_inner", "grad_outer_stride", "grad_inner_stride"]
SIZES = [
    *(f"{x}_{part}" for x in ("student", "teacher") for part in ("inner", "outer_stride", "inner_stride")),
    *GRAD_LAYOUT,
    "n_rows",
    "vocab_size",
    "grad_columns",
    "slices",
    "slice_columns",
]
POINTERS = ["student", "teacher", "grad", "rows", "weights", "lse", "value", "state", "entropies", "argmax"]


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
    """Whatever has a pointer: value, state, statistics and gradient of a row. Without `value` the log-sum-exps alone."""
    GRAD_LATER: tl.constexpr = grad is not None and DIVERGENCE != "forward_kl"
    read = tl.load(rows + n_rows)
    for position in range(tl.program_id(0), read if grad is None else n_rows, tl.num_programs(0)):
        row = tl.load(rows + position)
        if grad is not None:
            grad_row = row_pointer(grad, row, grad_inner, grad_outer_stride, grad_inner_stride)
        else:
            grad_row = None
        written = 0
        if position < read:
            s_row = row_pointer(student, row, student_inner, student_outer_stride, student_inner_stride)
            t_row = row_pointer(teacher, row, teacher_inner, teacher_outer_stride, teacher_inner_stride)
            if lse is None or argmax is not None:
                s_shift, s_total, t_shift, t_total, _, s_argmax, _, t_argmax = totals_pass(
                    s_row,
                    t_row,
                    vocab_size,
                    s_c,
                    t_c,
                    s_inner,
                    t_inner,
                    S_CAPPED,
                    T_CAPPED,
                    argmax is not None,
                    GROUPS,
                    GROUP,
                )
                s_inverse = 1.0 / s_total
                t_inverse = 1.0 / t_total
                if argmax is not None:
                    tl.store(argmax + row, s_argmax)
                    tl.store(argmax + n_rows + row, t_argmax)
            if lse is None:
                if state is not None:
                    tl.store(state + row, log_sum_exp(s_shift, s_total))
                    tl.store(state + n_rows + row, log_sum_exp(t_shift, t_total))
            else:
                s_lse = tl.load(lse + row)
                t_lse = tl.load(lse + n_rows + row)
                s_shift, s_inverse = from_log_sum_exp(s_lse)
                t_shift, t_inverse = from_log_sum_exp(t_lse)
                tl.store(state + row, s_lse)
                tl.store(state + n_rows + row, t_lse)
            if value is not None:
                weight = 0.0
                if grad is not None:
                    weight = tl.load(weights + row)
                row_value, mean_pull, t_mean_log2, s_mean_log2 = divergence_pass(
                    s_row,
                    t_row,
                    None if GRAD_LATER else grad_row,
                    vocab_size,
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
                    entropies is not None,
                    GRAD_LATER,
                    TEACHER_ALIGNED,
                    GRAD_ALIGNED,
                    GROUPS,
                    GROUP,
                )
                written = vocab_size
                tl.store(value + row, row_value)
                if state is not None:
                    tl.store(state + 2 * n_rows + row, mean_pull)
                if entropies is not None:
                    tl.store(entropies + row, entropy(t_mean_log2))
                    tl.store(entropies + n_rows + row, entropy(s_mean_log2))
                if GRAD_LATER:
                    if weight != 0.0:
                        gradient_pass(
                            s_row,
                            t_row,
                            grad_row,
                            vocab_size,
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
                    else:
                        written = 0
        if grad is not None:
            fill_zeros(grad_row + written, grad_columns - written, GROUPS, GROUP)
