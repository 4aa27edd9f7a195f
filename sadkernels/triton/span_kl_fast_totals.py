"""The first pass over a pair of rows, with few instructions per column: totals of the softmaxes, argmax, lowest logit.

The loop processes whole blocks, so it needs no masks. The groups that remain form a partial block at the start of the row,
which comes before the loop. The loop loads the next block while it computes.

The loop only notes in which block each thread has its largest logit. After it, the threads whose logit is the largest of the
row read this group again and find the column.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from sadkernels.triton.row_io import (
    block_pointers,
    group_max,
    load_block,
    load_edges,
    load_partial_block,
    no_minimum,
    positive,
    row_minimum,
    split_row,
    to_float32,
    track_minimum,
)
from sadkernels.triton.softmax import add_ordinary_block, apply_softcap, merge_groups_and_edges, no_groups, tanh

_NO_COLUMN = tl.constexpr(2**31 - 1)


class FastTotals(NamedTuple):
    """Shift and total of a row or slice, its lowest logit, and with ARGMAX its largest logit and the lowest column of it."""

    shift: tl.tensor
    total: tl.tensor
    lowest: tl.tensor
    best: tl.tensor
    argmax: tl.tensor


class _Totals(NamedTuple):
    """The running totals of each group, (GROUPS,) each. `best_first` is the first group of the block with `best`."""

    shift: tl.tensor
    total: tl.tensor
    lowest: tl.tensor
    best: tl.tensor
    best_first: tl.tensor


@triton.jit
def _add_block(
    totals, x, exists, row, first, ARGMAX: tl.constexpr, LOWEST: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr
):
    """Returns the totals with a block x of `load_block` added. `exists` (GROUPS, 1) is None for a whole block."""
    y = to_float32(x, GROUPS, GROUP)
    top = group_max(x, y)
    lowest, best, best_first = totals.lowest, totals.best, totals.best_first
    if LOWEST:
        if exists is None:
            lowest = track_minimum(lowest, x, y)
        else:
            lowest = track_minimum(lowest, tl.where(exists, x, 0), tl.where(exists, y, 0.0))
    if ARGMAX:
        best_first = tl.where(top > best, first, best_first)
        best = tl.maximum(best, top)
    if row.CAPPED:
        y = tanh(y * row.tanh_scale)
        if exists is not None:
            y = tl.where(exists, y, float("-inf"))
        top = tl.max(y, axis=1)
    shift, total = add_ordinary_block(y, top, row.c, totals.shift, totals.total)
    return _Totals(shift, total, lowest, best, best_first)


@triton.jit
def _partial_totals(
    pointers, n_groups, row, ARGMAX: tl.constexpr, LOWEST: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr
):
    """Returns the totals of the first `n_groups` groups, which are at most a block."""
    exists = (tl.arange(0, GROUPS) < n_groups)[:, None]
    x = load_partial_block(pointers, 0, exists, "")
    shift, total = no_groups(GROUPS, False)
    best = tl.full((GROUPS,), float("-inf"), tl.float32)
    nothing = _Totals(shift, total, no_minimum(x, GROUPS), best, tl.full((GROUPS,), 0, tl.int32))
    return _add_block(nothing, x, exists, row, 0, ARGMAX, LOWEST, GROUPS, GROUP)


@triton.jit
def _row_totals(
    totals,
    pointers,
    parts,
    edges,
    row,
    ARGMAX: tl.constexpr,
    LOWEST: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Returns the `FastTotals` of a row from those of its groups and its edges."""
    lowest, best, column = 0.0, 0.0, 0
    if LOWEST:
        lowest = tl.minimum(row_minimum(totals.lowest), tl.min(tl.where(parts.edge_exists, edges, 0.0), axis=0))
    if ARGMAX:
        best = tl.maximum(tl.max(totals.best, axis=0), tl.max(edges, axis=0))
        found = load_partial_block(pointers, totals.best_first[:, None], (totals.best == best)[:, None], "")
        group = totals.best_first + tl.arange(0, GROUPS)
        columns = parts.head + group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        columns = tl.where(to_float32(found, GROUPS, GROUP) == best, columns, _NO_COLUMN)
        edge_columns = tl.where(edges == best, parts.edge_column, _NO_COLUMN)
        column = tl.minimum(tl.min(tl.min(columns, axis=1), axis=0), tl.min(edge_columns, axis=0))
    edges = apply_softcap(edges, row.tanh_scale, parts.edge_exists, row.CAPPED)
    shift, total = merge_groups_and_edges(totals.shift, totals.total, edges, row.c, False)
    return FastTotals(shift, total, lowest, best, column)


@triton.jit
def fast_totals_pass(
    student,
    teacher,
    columns,
    ARGMAX: tl.constexpr,
    LOWEST: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Returns the `FastTotals` of two `LogitRow`s, each read along its own aligned groups.

    Totals and argmax are undefined if a shift is `out_of_bounds` or a total is NaN. The lowest logit is at most 0.
    """
    s_parts = split_row(student.pointer, columns, GROUP)
    t_parts = split_row(teacher.pointer, columns, GROUP)
    s_pointers = block_pointers(student.pointer, s_parts, True, GROUPS, GROUP)
    t_pointers = block_pointers(teacher.pointer, t_parts, True, GROUPS, GROUP)
    # The numbers of groups differ by at most 1, so the partial blocks have at most GROUPS groups
    blocks = tl.minimum(s_parts.n_groups, t_parts.n_groups) // GROUPS
    s_first, t_first = s_parts.n_groups - blocks * GROUPS, t_parts.n_groups - blocks * GROUPS
    s_next = load_block(s_pointers, s_first, positive(blocks), "")
    t_next = load_block(t_pointers, t_first, positive(blocks), "")
    s_totals = _partial_totals(s_pointers, s_first, student, ARGMAX, LOWEST, GROUPS, GROUP)
    t_totals = _partial_totals(t_pointers, t_first, teacher, ARGMAX, LOWEST, GROUPS, GROUP)
    for block in range(blocks):
        s, t = s_next, t_next
        s_next = load_block(s_pointers, s_first + GROUPS, positive(blocks - 1 - block), "")
        t_next = load_block(t_pointers, t_first + GROUPS, positive(blocks - 1 - block), "")
        s_totals = _add_block(s_totals, s, None, student, s_first, ARGMAX, LOWEST, GROUPS, GROUP)
        t_totals = _add_block(t_totals, t, None, teacher, t_first, ARGMAX, LOWEST, GROUPS, GROUP)
        s_first += GROUPS
        t_first += GROUPS
    s_edges = load_edges(student.pointer, s_parts)
    t_edges = load_edges(teacher.pointer, t_parts)
    return (
        _row_totals(s_totals, s_pointers, s_parts, s_edges, student, ARGMAX, LOWEST, GROUPS, GROUP),
        _row_totals(t_totals, t_pointers, t_parts, t_edges, teacher, ARGMAX, LOWEST, GROUPS, GROUP),
    )
