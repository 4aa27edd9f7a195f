"""The two launches of 16-bit logits: the first defers rows that are not ordinary, the second computes them."""

from __future__ import annotations

import math

import pytest
import torch

from sadkernels.divergence import DivergenceConfig
from sadkernels.triton import span_kl
from sadkernels.triton.launch import Launch, run_all

V, COLUMNS = 1050, 1060  # columns with a probability; columns of the gradient
DEFERRED = [1, 4, 5]


def _rows(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns student and teacher (6, COLUMNS), kinds and weights. Row 2 is not read, row 3 has weight 0."""
    torch.manual_seed(0)
    student, teacher = (3 * torch.randn(2, 6, COLUMNS)).bfloat16()
    teacher[1, 700] = -math.inf
    student[4] *= 2.0**25
    student[5, 20] = math.nan
    weights = torch.tensor([1.0, 0.5, 1.0, 0.0, 2.0, 0.25])
    kinds = torch.tensor([1, 2, 0, 1, 1, 2], dtype=torch.uint8)
    return student.to(device), teacher.to(device), kinds.to(device), weights.to(device)


def _launches(
    device: torch.device, divergence: str, stats: bool
) -> tuple[list[Launch], list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Returns the launches of a call in place, its outputs with the rows last, its gradient and the index of the rows."""
    student, teacher, kinds, weights = _rows(device)
    outputs = span_kl._outputs(kinds, stats, state=True)
    config = DivergenceConfig(V, divergence=divergence)
    launches = span_kl.forward_launches(span_kl.Inputs(student, teacher, kinds, config, student, weights), outputs)
    return launches, [x for x in outputs if x is not None], student, launches[-1].values["rows"]


@pytest.mark.parametrize(("divergence", "stats"), [("forward_kl", False), ("reverse_kl", True), ("jsd", False)])
def test_deferred_rows_have_the_bits_of_the_passes_for_any_values(divergence, stats, device, monkeypatch):
    launches, outputs, grad, rows = _launches(device, divergence, stats)
    assert [x.values.get("ROWS") for x in launches] == [None, "ordinary", "deferred"]
    run_all(launches, device)
    assert [~row for row in rows[:5].tolist() if row < 0] == DEFERRED and rows[-1] == 1
    monkeypatch.setattr(span_kl, "_has_fast_passes", lambda inputs, outputs: False)
    alone, all_outputs, all_grad, _ = _launches(device, divergence, stats)
    assert [x.values.get("ROWS") for x in alone] == [None, "all"]
    run_all(alone, device)
    for got, want in zip([*outputs, grad.T], [*all_outputs, all_grad.T]):
        torch.testing.assert_close(got[..., DEFERRED], want[..., DEFERRED], rtol=0, atol=0, equal_nan=True)
        ordinary = [0, 2, 3]
        torch.testing.assert_close(got[..., ordinary].float(), want[..., ordinary].float(), rtol=1e-2, atol=1e-5)
    assert (grad[:, V:] == 0).all() and (grad[2:4] == 0).all()


def test_the_second_launch_touches_deferred_rows_only(device):
    launches, outputs, grad, rows = _launches(device, "forward_kl", True)
    run_all(launches[:2], device)
    for x in [*outputs, grad]:
        x[...] = 7
    rows_of_first, flag = rows.clone(), rows[-1].clone()
    rows[-1] = 0
    run_all(launches[2:], device)
    assert all((x == 7).all() for x in [*outputs, grad]), "without the flag the launch returns at once"
    rows[-1] = flag
    grad[DEFERRED] = _rows(device)[0][DEFERRED]
    run_all(launches[2:], device)
    others = [0, 2, 3]
    assert all((x[..., others] == 7).all() for x in [*outputs, grad.T])
    assert all((x[..., DEFERRED] != 7).all() for x in [*outputs, grad.T])
    assert torch.equal(rows, rows_of_first)


def test_an_unusual_row_does_not_change_the_others(device):
    """Also the same bits on a second run."""
    launches, outputs, grad, _ = _launches(device, "forward_kl", True)
    run_all(launches, device)
    again, other_outputs, other_grad, _ = _launches(device, "forward_kl", True)
    student, teacher = again[1].values["student"], again[1].values["teacher"]
    student[5, 20], teacher[1, 700] = 0.5, 0.5
    run_all(again, device)
    for got, want in zip([*outputs, grad.T], [*other_outputs, other_grad.T]):
        assert torch.equal(got[..., [0, 2, 3, 4]], want[..., [0, 2, 3, 4]])
