"""Helpers: rows in guarded buffers, rows split into slices, and comparisons with the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig, RowValues
from sadkernels.triton import tiles


def split_rows_into(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Makes the launchers split every row into slices of `columns` columns (a multiple of 8), on the narrowest tile."""
    monkeypatch.setattr(tiles, "_wide", lambda available: available["short"])
    monkeypatch.setattr(
        tiles, "slice_rows", lambda n_rows, all_columns, grid: tiles.Slices(-(-all_columns // columns), columns)
    )


def rows_within(values: Tensor, offset: int, gap: int, guard: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns a buffer of `guard`, and a copy of `values` (N, V) in it: `offset` elements in, `gap` between rows."""
    n, v = values.shape
    buffer = torch.full((offset + n * (v + gap) + 16,), guard, dtype=values.dtype, device=device)
    rows = buffer.as_strided((n, v), (v + gap, 1), offset)
    rows.copy_(values)
    return buffer, rows


def assert_only_rows_written(buffer: Tensor, rows: Tensor, guard: float) -> None:
    """Asserts that every element of `buffer` outside `rows` still holds `guard`."""
    inside = torch.zeros(buffer.shape, dtype=torch.bool, device=buffer.device)
    inside.as_strided(rows.shape, rows.stride(), rows.storage_offset()).fill_(True)
    assert (buffer[~inside] == guard).all()


def assert_gradient(grad: Tensor, exact: Tensor) -> None:
    """Asserts that a gradient matches the reference's in float64."""
    tolerance = torch.finfo(grad.dtype).eps / 2 + 1e-6  # one rounding, on a difference of two probabilities
    torch.testing.assert_close(grad.double().cpu(), exact, rtol=tolerance, atol=2e-6)


def absolute(log_sum_exps: Tensor, config: DivergenceConfig) -> Tensor:
    """Returns log-sum-exps (2, N) with the origin 0, in float64: of a state, or of the result of `log_sum_exps`."""
    factors = torch.tensor(config.factors, dtype=torch.float64)[:, None]
    return log_sum_exps[:2].double().cpu() + factors * log_sum_exps[-2:].double().cpu()


def assert_values(got: RowValues, exact: RowValues, config: DivergenceConfig) -> None:
    """Asserts that values, state and statistics match the reference's in float64."""
    torch.testing.assert_close(got.value.double().cpu(), exact.value, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(absolute(got.state, config), absolute(exact.state, config), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(got.state[2].double().cpu(), exact.state[2], rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(got.entropies.double().cpu(), exact.entropies, rtol=2e-6, atol=1e-6)
    assert got.argmax.dtype == torch.int32
    assert torch.equal(got.argmax.long().cpu(), exact.argmax)
