"""Rows in guarded buffers, rows cut into slices, and what kernels make of them against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sadkernels.divergence import RowValues
from sadkernels.triton import tiles


def cut_into(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Lets the launchers cut every row into slices of `columns` columns (a multiple of 8), each on the narrowest tile."""
    monkeypatch.setattr(tiles, "_wide", lambda found: found["short"])
    monkeypatch.setattr(
        tiles, "slice_rows", lambda n_rows, all_columns, grid: tiles.Slices(-(-all_columns // columns), columns)
    )


def rows_within(values: Tensor, offset: int, gap: int, guard: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """`values` (N, V) as a view into a buffer of `guard`, `offset` elements into it and `gap` between rows; both."""
    n, v = values.shape
    buffer = torch.full((offset + n * (v + gap) + 16,), guard, dtype=values.dtype, device=device)
    rows = buffer.as_strided((n, v), (v + gap, 1), offset)
    rows.copy_(values)
    return buffer, rows


def assert_only_rows_written(buffer: Tensor, rows: Tensor, guard: float) -> None:
    inside = torch.zeros(buffer.shape, dtype=torch.bool, device=buffer.device)
    inside.as_strided(rows.shape, rows.stride(), rows.storage_offset()).fill_(True)
    assert (buffer[~inside] == guard).all()


def assert_gradient(grad: Tensor, exact: Tensor) -> None:
    tolerance = torch.finfo(grad.dtype).eps / 2 + 1e-6  # one rounding, on a difference of two probabilities
    torch.testing.assert_close(grad.double().cpu(), exact, rtol=tolerance, atol=2e-6)


def assert_values(found: RowValues, exact: RowValues) -> None:
    """`found` against the reference's in float64, with statistics."""
    torch.testing.assert_close(found.value.double().cpu(), exact.value, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(found.state.double().cpu(), exact.state, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(found.entropies.double().cpu(), exact.entropies, rtol=2e-6, atol=1e-6)
    assert found.argmax.dtype == torch.int32
    assert torch.equal(found.argmax.long().cpu(), exact.argmax)
