"""Which rows are read: an index made on the device, so that no program wakes up for a row that is not."""

from __future__ import annotations

import triton
import triton.language as tl

_POINTERS = ["kinds", "weights", "rows", "value", "state", "entropies", "argmax"]


@triton.jit(do_not_specialize=["n_rows"], do_not_specialize_on_alignment=_POINTERS)
def collect_rows_kernel(
    kinds,
    weights,
    rows,
    value,
    state,
    entropies,
    argmax,
    n_rows: tl.int32,
    STATE_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes `rows` (N + 1,): rows that are read, in order; the others, from the back; and how many are read, at rows[N].

    A row is read when its kind is not 0, and its weight where there are `weights`. The other outputs get their zeros for
    rows that are not read; those that are None do not exist. One program: the position of a row depends on all before it.
    """
    found = 0
    for first in range(0, n_rows, BLOCK):
        row = first + tl.arange(0, BLOCK)
        exists = row < n_rows
        read = exists & (tl.load(kinds + row, mask=exists, other=0) != 0)
        if weights is not None:
            read = read & (tl.load(weights + row, mask=exists, other=0.0) != 0.0)
        read_before = found + tl.cumsum(read.to(tl.int32), axis=0) - read.to(tl.int32)
        tl.store(rows + tl.where(read, read_before, n_rows - 1 - (row - read_before)), row, mask=exists)
        found += tl.sum(read.to(tl.int32), axis=0)
        unread = exists & (read == 0)
        if value is not None:
            tl.store(value + row, 0.0, mask=unread)
        if state is not None:
            for k in tl.static_range(STATE_ROWS):
                tl.store(state + k * n_rows + row, 0.0, mask=unread)
        if entropies is not None:
            tl.store(entropies + row, 0.0, mask=unread)
            tl.store(entropies + n_rows + row, 0.0, mask=unread)
        if argmax is not None:
            tl.store(argmax + row, 0, mask=unread)
            tl.store(argmax + n_rows + row, 0, mask=unread)
    tl.store(rows + n_rows, found)
