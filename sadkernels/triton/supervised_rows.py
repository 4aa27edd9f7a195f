"""The index of the rows to read. A kernel computes it on the device, so that no program starts for a row without a loss."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sadkernels.triton.launch import Launch

_BLOCK, _WARPS = 4096, 16  # rows per step of the one program: 8 rows for each of 512 threads
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
    """Writes `rows` (N + 2,), and zeros to the outputs of the rows that are not read.

    `rows` starts with the rows to read, in order. The other rows fill its first N entries from the back. `rows[N]` is the
    number of rows to read, and `rows[N + 1]` is 0 until `span_kl_kernel` defers a row. A row is read if its kind is not 0
    and, with `weights`, its weight is not 0. An output may be None.

    One program does this alone, because the position of a row depends on all rows before it.
    """
    n_read = 0
    for first in range(0, n_rows, BLOCK):
        row = first + tl.arange(0, BLOCK)
        exists = row < n_rows
        read = exists & (tl.load(kinds + row, mask=exists, other=0) != 0)
        if weights is not None:
            read = read & (tl.load(weights + row, mask=exists, other=0.0) != 0.0)
        read_before = n_read + tl.cumsum(read.to(tl.int32), axis=0) - read.to(tl.int32)
        tl.store(rows + tl.where(read, read_before, n_rows - 1 - (row - read_before)), row, mask=exists)
        n_read += tl.sum(read.to(tl.int32), axis=0)
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
    tl.store(rows + n_rows, n_read)
    tl.store(rows + n_rows + 1, 0)


def collect_rows(
    kinds: Tensor,
    weights: Tensor | None = None,
    *,
    value: Tensor | None = None,
    state: Tensor | None = None,
    entropies: Tensor | None = None,
    argmax: Tensor | None = None,
) -> tuple[Tensor, Launch]:
    """Returns the index `rows` (N + 2,) int32 and the launch that fills it and zeroes the outputs of rows that are not read.

    Args:
        kinds: (N,) uint8, 0 for rows that are not read.
        weights: (N,); if given, rows of weight 0 are not read either.
        value: (N,), an output.
        state: (S, N), an output.
        entropies: (2, N), an output.
        argmax: (2, N), an output.
    """
    n = kinds.numel()
    rows = torch.empty(n + 2, dtype=torch.int32, device=kinds.device)
    values = {
        "kinds": kinds,
        "weights": weights,
        "rows": rows,
        "value": value,
        "state": state,
        "entropies": entropies,
        "argmax": argmax,
        "n_rows": n,
        "STATE_ROWS": 0 if state is None else state.shape[0],
        "BLOCK": _BLOCK,
    }
    return rows, Launch(collect_rows_kernel, 1, values, warps=_WARPS)
