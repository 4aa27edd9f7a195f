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

import torch
import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
_HAS_PAIRS = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1" and torch.version.hip is None)
_LOWEST_PAIR = tl.constexpr(-8323200)  # 0xFF80FF80, two bfloat16 of -inf


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

    ALIGNED must be a constant of the caller, not a field of a tuple: Triton turns constants in tuples into tensors. Then `if
    ALIGNED` becomes a branch of the program, and `tl.multiple_of` in it holds for both sides.

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
    """Stores the groups of the block x (GROUPS, GROUP) that exist, from group `first` on."""
    exists = (first + tl.arange(0, GROUPS) < parts.n_groups)[:, None]
    store_block(row, parts, first, x, exists, ALIGNED, GROUPS, GROUP)


@triton.jit
def store_block(row, parts, first, x, mask, ALIGNED: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Stores the block x (GROUPS, GROUP) from group `first` on, where the mask is true.

    The stores are evicted first from the caches, because no kernel reads the gradient soon and the logits need the space.
    """
    start = row + parts.head
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    group = first + tl.arange(0, GROUPS)
    pointers = start + (group[:, None] * GROUP + tl.arange(0, GROUP)[None, :])
    tl.store(pointers, x, mask=mask, eviction_policy="evict_first")


@triton.jit
def block_pointers(row, parts, ALIGNED: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Returns the pointers to the block that starts at group 0, for `load_block`.

    Aligned bfloat16 columns are loaded as pairs, (GROUPS, GROUP / 2) of int32: `to_float32` needs one instruction per column
    of a pair, and two per column of single bfloat16 columns.
    """
    start = row + parts.head
    WIDTH: tl.constexpr = GROUP // 2 if ALIGNED and row.dtype.element_ty == tl.bfloat16 else GROUP
    if WIDTH < GROUP:
        start = start.to(tl.pointer_type(tl.int32), bitcast=True)
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    return start + (tl.arange(0, GROUPS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :])


@triton.jit
def positive(number):
    """Returns whether an integer is positive, as a mask (1, 1): the interpreter accepts no scalar masks."""
    return tl.full((1, 1), 0, tl.int32) < number


@triton.jit
def only_if(condition, parts):
    """Returns the `RowParts`, without groups and edges if the condition is false."""
    edge_exists = tl.where(condition, parts.edge_exists.to(tl.int32), 0) != 0
    return RowParts(parts.head, tl.where(condition, parts.n_groups, 0), parts.edge_column, edge_exists)


@triton.jit
def load_block(pointers, first, mask, EVICTION: tl.constexpr):
    """Loads the block from group `first` on, a number or one per group, where `mask` is true; other groups are undefined."""
    return tl.load(pointers + first * pointers.shape[1], mask=mask, eviction_policy=EVICTION)


@triton.jit
def load_partial_block(pointers, first, exists, EVICTION: tl.constexpr):
    """Loads the block from group `first` on; groups that do not exist (GROUPS, 1) become -inf."""
    OTHER: tl.constexpr = _LOWEST_PAIR if pointers.dtype.element_ty == tl.int32 else float("-inf")
    return tl.load(pointers + first * pointers.shape[1], mask=exists, other=OTHER, eviction_policy=EVICTION)


@triton.jit
def _halves(pairs):
    """Returns both bfloat16 of pairs in float32, the one at the lower address first."""
    return (pairs << 16).to(tl.float32, bitcast=True), (pairs & -65536).to(tl.float32, bitcast=True)


@triton.jit
def halves(x, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Returns the even and the odd columns of a block from `load_block`, as (GROUPS, GROUP / 2) float32."""
    if x.dtype == tl.int32:
        even, odd = _halves(x)
    else:
        a, b = tl.split(tl.reshape(x, (GROUPS, GROUP // 2, 2)))
        even, odd = a.to(tl.float32), b.to(tl.float32)
    return even, odd


@triton.jit
def to_float32(x, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Returns a block from `load_block` as (GROUPS, GROUP) float32."""
    if x.dtype == tl.int32:
        low, high = _halves(x)
        y = tl.reshape(tl.join(low, high), (GROUPS, GROUP))
    else:
        y = x.to(tl.float32)
    return y


@triton.jit
def _larger_pair(a, b):
    return tl.inline_asm_elementwise("max.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def _smaller_pair(a, b):
    return tl.inline_asm_elementwise("min.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def group_max(x, y):
    """Returns the maximum (GROUPS,) of each group, from a block x of `load_block` and y = `to_float32` of it."""
    if _HAS_PAIRS and x.dtype == tl.int32:
        low, high = _halves(tl.reduce(x, 1, _larger_pair))
        top = tl.maximum(low, high)
    else:
        top = tl.max(y, axis=1)
    return top


@triton.jit
def no_minimum(x, GROUPS: tl.constexpr):
    """Returns the running minimum, (GROUPS,) each, of no block; it starts at 0. x is a block of `load_block`."""
    if _HAS_PAIRS and x.dtype == tl.int32:
        lowest = tl.full((GROUPS,), 0, tl.int32)
    else:
        lowest = tl.full((GROUPS,), 0.0, tl.float32)
    return lowest


@triton.jit
def track_minimum(lowest, x, y):
    """Returns the running minimum of each group and of a block x; y = `to_float32` of it."""
    if lowest.dtype == tl.int32:
        lowest = _smaller_pair(lowest, tl.reduce(x, 1, _smaller_pair))
    else:
        lowest = tl.minimum(lowest, tl.min(y, axis=1))
    return lowest


@triton.jit
def row_minimum(lowest):
    """Returns the minimum of a row's groups from the running minimum."""
    if lowest.dtype == tl.int32:
        low, high = _halves(lowest)
        lowest = tl.minimum(low, high)
    return tl.min(lowest, axis=0)


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
