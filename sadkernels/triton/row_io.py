"""Loads and stores of rows: 16 bytes per thread, whatever address a row starts at.

A GPU moves 16 bytes per thread at a time, from addresses that are divisible by 16. A row may start at any address: rows of
50257 bfloat16 columns (GPT-2) start at any even address. Therefore `split_row` splits a row into three parts:

    first edge     at most GROUP - 1 columns, up to the first aligned address
    whole groups   GROUP columns each; a block is GROUPS of them, and loops process one block per iteration
    last edge      at most GROUP - 1 columns

One vector of 2 GROUP lanes holds both edges. No function touches an address outside the row.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


class RowParts(NamedTuple):
    """The edges and the whole groups of a row, from `split_row`."""

    head: tl.tensor  # columns before the first whole group
    n_groups: tl.tensor  # whole groups
    edge_column: tl.tensor  # (2 GROUP,) the column of each edge lane
    edge_exists: tl.tensor  # (2 GROUP,) whether the lane has a column


@triton.jit
def row_pointer(base, row, inner, outer_stride, inner_stride):
    """Returns the pointer to a row of a `RowLayout`, in 64-bit arithmetic because N * V may exceed 2^31."""
    return base + ((row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride)


@triton.jit
def split_row(row, columns, GROUP: tl.constexpr):
    """Returns the `RowParts` of the `columns` columns that start at the pointer `row`."""
    element = row.to(tl.int64) // (row.dtype.element_ty.primitive_bitwidth // 8)
    head = tl.minimum(((GROUP - element % GROUP) % GROUP).to(tl.int32), columns)
    n_groups = (columns - head) // GROUP
    lane = tl.arange(0, 2 * GROUP)
    first_edge = lane < GROUP
    edge_column = tl.where(first_edge, lane, head + n_groups * GROUP + lane - GROUP)
    return RowParts(head, n_groups, edge_column, edge_column < tl.where(first_edge, head, columns))


@triton.jit
def load_groups(row, parts, first, ALIGNED: tl.constexpr, EVICTION: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Loads a block (GROUPS, GROUP) from group `first` on, in the storage dtype; groups outside the row become -inf.

    If ALIGNED, every group starts at a multiple of 16 bytes; otherwise the loads are narrow. One mask bit covers a whole
    group, so the mask does not narrow the loads.

    Loops load the next block before they compute with the current one. This needs half the registers of a block twice the
    size, and hides the latency of the load behind the arithmetic of one block.
    """
    start = row + parts.head
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    group = first + tl.arange(0, GROUPS)
    pointers = start + (group[:, None] * GROUP + tl.arange(0, GROUP)[None, :])
    exists = ((group >= 0) & (group < parts.n_groups))[:, None]
    return tl.load(pointers, mask=exists, other=float("-inf"), eviction_policy=EVICTION)


@triton.jit
def store_groups(row, parts, first, x, ALIGNED: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Stores the block x (GROUPS, GROUP) from group `first` on.

    The stores are evicted first from the caches, because no kernel reads the gradient soon and the logits need the space.
    """
    start = row + parts.head
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    group = first + tl.arange(0, GROUPS)
    pointers = start + (group[:, None] * GROUP + tl.arange(0, GROUP)[None, :])
    tl.store(pointers, x, mask=(group < parts.n_groups)[:, None], eviction_policy="evict_first")


@triton.jit
def load_edges(row, parts):
    """Loads both edges (2 GROUP,) in float32; lanes without a column become -inf."""
    return tl.load(row + parts.edge_column, mask=parts.edge_exists, other=float("-inf")).to(tl.float32)


@triton.jit
def store_edges(row, parts, x):
    """Stores both edges x (2 GROUP,)."""
    tl.store(row + parts.edge_column, x, mask=parts.edge_exists)


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """Rounds float32 to the storage dtype, to nearest even. The interpreter truncates to bfloat16, so it rounds here."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def fill_zeros(row, columns, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Writes zeros to the `columns` columns that start at the pointer `row`."""
    if columns > 0:
        parts = split_row(row, columns, GROUP)
        zeros = tl.zeros((GROUPS, GROUP), row.dtype.element_ty)
        for block in range(tl.cdiv(parts.n_groups, GROUPS)):
            store_groups(row, parts, block * GROUPS, zeros, True, GROUPS, GROUP)
        store_edges(row, parts, tl.zeros((2 * GROUP,), row.dtype.element_ty))
