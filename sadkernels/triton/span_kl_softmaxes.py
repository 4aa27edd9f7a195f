"""The first pass over a pair of rows, or over the same slice of both: the softmaxes, and the argmax of each row.

    row_softmaxes       of rows of any values; large exponents and NaN need a second pass, `exact_totals_pass`
    ordinary_softmaxes  of ordinary rows, and whether a row is ordinary

Each row has its own groups.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from sadkernels.triton.row_io import load_edges, load_groups, split_row
from sadkernels.triton.softmax import (
    add_block,
    apply_softcap,
    log_sum_of_totals,
    merge_groups_and_edges,
    no_groups,
    out_of_bounds,
    row_argmax,
    track_argmax,
)
from sadkernels.triton.span_kl_fast_passes import in_range
from sadkernels.triton.span_kl_fast_totals import fast_totals_pass


class RowTotals(NamedTuple):
    """Top and total of a row or slice; with ARGMAX also its largest logit and its lowest column."""

    top: tl.tensor
    total: tl.tensor
    best: tl.tensor
    argmax: tl.tensor


class Softmax(NamedTuple):
    """The normalization of a row or slice, as in `LogSum`; with ARGMAX also its largest logit and its lowest column."""

    origin: tl.tensor
    log2_sum: tl.tensor
    best: tl.tensor
    argmax: tl.tensor


@triton.jit
def exact_totals_pass(
    student,
    teacher,
    columns,
    ARGMAX: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Returns the `RowTotals` of two `LogitRow`s of any values, each read along its own aligned groups.

    The pass is rare, so it saves registers: it loads no block ahead.
    """
    s_parts = split_row(student.pointer, columns, GROUP)
    t_parts = split_row(teacher.pointer, columns, GROUP)
    s_edges = load_edges(student.pointer, s_parts)
    t_edges = load_edges(teacher.pointer, t_parts)
    s_shift, s_total = no_groups(GROUPS, True)
    t_shift, t_total = no_groups(GROUPS, True)
    if ARGMAX:
        s_best = tl.full((GROUPS,), float("-inf"), tl.float32)
        t_best = tl.full((GROUPS,), float("-inf"), tl.float32)
        s_column = tl.full((GROUPS,), 0, tl.int32)
        t_column = tl.full((GROUPS,), 0, tl.int32)
    for block in range(tl.cdiv(tl.maximum(s_parts.n_groups, t_parts.n_groups), GROUPS)):
        first = block * GROUPS
        s = load_groups(student.pointer, s_parts, first, True, "", GROUPS, GROUP).to(tl.float32)
        t = load_groups(teacher.pointer, t_parts, first, True, "", GROUPS, GROUP).to(tl.float32)
        if ARGMAX:
            s_top, s_best, s_column = track_argmax(s, s_parts.head, first, s_best, s_column, GROUPS, GROUP)
            t_top, t_best, t_column = track_argmax(t, t_parts.head, first, t_best, t_column, GROUPS, GROUP)
        s_exists = (first + tl.arange(0, GROUPS) < s_parts.n_groups)[:, None]
        s = apply_softcap(s, student.tanh_scale, s_exists, student.CAPPED)
        t_exists = (first + tl.arange(0, GROUPS) < t_parts.n_groups)[:, None]
        t = apply_softcap(t, teacher.tanh_scale, t_exists, teacher.CAPPED)
        if student.CAPPED or not ARGMAX:
            s_top = tl.max(s, axis=1)
        if teacher.CAPPED or not ARGMAX:
            t_top = tl.max(t, axis=1)
        s_shift, s_total = add_block(s, s_top, student.c, s_shift, s_total, True)
        t_shift, t_total = add_block(t, t_top, teacher.c, t_shift, t_total, True)
    s_row_best, s_argmax, t_row_best, t_argmax = 0.0, 0, 0.0, 0
    if ARGMAX:
        s_row_best, s_argmax = row_argmax(s_best, s_column, s_edges, s_parts.edge_column)
        t_row_best, t_argmax = row_argmax(t_best, t_column, t_edges, t_parts.edge_column)
    s_edges = apply_softcap(s_edges, student.tanh_scale, s_parts.edge_exists, student.CAPPED)
    t_edges = apply_softcap(t_edges, teacher.tanh_scale, t_parts.edge_exists, teacher.CAPPED)
    s_row_shift, s_row_total = merge_groups_and_edges(s_shift, s_total, s_edges, student.c, True)
    t_row_shift, t_row_total = merge_groups_and_edges(t_shift, t_total, t_edges, teacher.c, True)
    return (
        RowTotals(s_row_shift, s_row_total, s_row_best, s_argmax),
        RowTotals(t_row_shift, t_row_total, t_row_best, t_argmax),
    )


@triton.jit
def _needs_exact(s_totals, t_totals, columns):
    """Returns whether the exponents are too large for `fast_totals_pass`. One column needs a probability of exactly 1."""
    return out_of_bounds(s_totals.shift) | out_of_bounds(t_totals.shift) | (columns == 1)


@triton.jit
def row_softmaxes(student, teacher, columns, ARGMAX: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Returns the `Softmax`es of two `LogitRow`s of any values.

    An exact pass follows if the fast pass finds large exponents, or a NaN that it ignores in the argmax.
    """
    s_totals, t_totals = fast_totals_pass(student, teacher, columns, ARGMAX, False, GROUPS, GROUP)
    s_sum = log_sum_of_totals(s_totals.shift, s_totals.total, student.c, False)
    t_sum = log_sum_of_totals(t_totals.shift, t_totals.total, teacher.c, False)
    s_origin, s_log2_sum, t_origin, t_log2_sum = s_sum.origin, s_sum.log2_sum, t_sum.origin, t_sum.log2_sum
    s_best, s_argmax, t_best, t_argmax = s_totals.best, s_totals.argmax, t_totals.best, t_totals.argmax
    exact = _needs_exact(s_totals, t_totals, columns)
    if ARGMAX:
        exact = exact | (s_totals.total != s_totals.total) | (t_totals.total != t_totals.total)
    if exact:
        s_exact, t_exact = exact_totals_pass(student, teacher, columns, ARGMAX, GROUPS, GROUP)
        s_sum = log_sum_of_totals(s_exact.top, s_exact.total, student.c, True)
        t_sum = log_sum_of_totals(t_exact.top, t_exact.total, teacher.c, True)
        s_origin, s_log2_sum, t_origin, t_log2_sum = s_sum.origin, s_sum.log2_sum, t_sum.origin, t_sum.log2_sum
        s_best, s_argmax, t_best, t_argmax = s_exact.best, s_exact.argmax, t_exact.best, t_exact.argmax
    return Softmax(s_origin, s_log2_sum, s_best, s_argmax), Softmax(t_origin, t_log2_sum, t_best, t_argmax)


@triton.jit
def ordinary_softmaxes(
    student,
    teacher,
    columns,
    mixture,
    ARGMAX: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Returns the `Softmax`es of two `LogitRow`s, and whether both rows are ordinary; if not, the softmaxes are undefined.

    Ordinary rows have finite logits in the range of `span_kl_fast_passes`, and more than one column.
    """
    s_totals, t_totals = fast_totals_pass(student, teacher, columns, ARGMAX, True, GROUPS, GROUP)
    s_sum = log_sum_of_totals(s_totals.shift, s_totals.total, student.c, False)
    t_sum = log_sum_of_totals(t_totals.shift, t_totals.total, teacher.c, False)
    ordinary = in_range(s_sum, t_sum, student.c, teacher.c, s_totals.lowest, t_totals.lowest, mixture, DIVERGENCE)
    ordinary = ordinary & (s_totals.total + t_totals.total < float("inf")) & (_needs_exact(s_totals, t_totals, columns) == 0)
    s_softmax = Softmax(s_sum.origin, s_sum.log2_sum, s_totals.best, s_totals.argmax)
    return s_softmax, Softmax(t_sum.origin, t_sum.log2_sum, t_totals.best, t_totals.argmax), ordinary
