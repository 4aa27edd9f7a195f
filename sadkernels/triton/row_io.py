"""Rows in memory: wide loads and stores whatever address a row begins at.

A GPU moves 16 bytes per thread at a time, from addresses divisible by 16. Rows of GPT-2's 50257 bfloat16 columns begin at
any even address. So a row is cut into

    edges before   at most GROUP - 1 columns, up to the first aligned address
    whole groups   GROUP columns each: everything the loops touch, GROUPS of them at a time
    edges after    at most GROUP - 1 columns

and both edges together travel as one vector of 2 GROUP lanes. No address outside the row is touched.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def row_pointer(base, row, inner, outer_stride, inner_stride):
    """Where a row of a `RowLayout` begins, in 64 bits: N * V may exceed 2^31."""
    return base + ((row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride)


@triton.jit
def cut_row(row, columns, GROUP: tl.constexpr):
    """Columns before the first whole group, the number of groups, the column of each edge lane and whether it exists."""
    element = row.to(tl.int64) // (row.dtype.element_ty.primitive_bitwidth // 8)
    head = tl.minimum(((GROUP - element % GROUP) % GROUP).to(tl.int32), columns)
    groups = (columns - head) // GROUP
    lane = tl.arange(0, 2 * GROUP)
    before = lane < GROUP
    edge_column = tl.where(before, lane, head + groups * GROUP + lane - GROUP)
    return head, groups, edge_column, edge_column < tl.where(before, head, columns)


@triton.jit
def load_groups(
    row, head, first, groups, ALIGNED: tl.constexpr, EVICTION: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr
):
    """(GROUPS, GROUP) columns from group `first` on, as stored; -inf where that leaves the row's groups.

    ALIGNED says that every group begins at a multiple of 16 bytes; without it the loads are narrow. One mask bit serves a
    whole group, so that the mask does not narrow them either.

    Loops load the block they will need next before they compute with the one they have: half the registers of a block
    twice the size, and the load has a whole block of arithmetic to arrive in.
    """
    start = row + head
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    group = first + tl.arange(0, GROUPS)
    pointers = start + (group[:, None] * GROUP + tl.arange(0, GROUP)[None, :])
    exists = ((group >= 0) & (group < groups))[:, None]
    return tl.load(pointers, mask=exists, other=float("-inf"), eviction_policy=EVICTION)


@triton.jit
def store_groups(row, head, first, groups, x, ALIGNED: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Writes x (GROUPS, GROUP) where `load_groups` reads; nobody reads it soon, so it leaves the caches to the logits."""
    start = row + head
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    group = first + tl.arange(0, GROUPS)
    pointers = start + (group[:, None] * GROUP + tl.arange(0, GROUP)[None, :])
    tl.store(pointers, x, mask=(group < groups)[:, None], eviction_policy="evict_first")


@triton.jit
def load_edges(row, column, exists):
    """The edge lanes in float32, -inf where there is no column."""
    return tl.load(row + column, mask=exists, other=float("-inf")).to(tl.float32)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """float32 in the storage dtype, to nearest even as the hardware does it; the interpreter truncates to bfloat16."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def fill_zeros(row, columns, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Zeros into `columns` columns from `row` on."""
    if columns > 0:
        head, groups, edge_column, edge_exists = cut_row(row, columns, GROUP)
        zeros = tl.zeros((GROUPS, GROUP), row.dtype.element_ty)
        for block in range(tl.cdiv(groups, GROUPS)):
            store_groups(row, head, block * GROUPS, groups, zeros, True, GROUPS, GROUP)
        tl.store(row + edge_column, tl.zeros((2 * GROUP,), row.dtype.element_ty), mask=edge_exists)
