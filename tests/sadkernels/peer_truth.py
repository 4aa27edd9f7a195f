"""The formulas of the losses in float64, and the comparison with them, for the cases of other projects."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def divergences(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Returns the divergence of each row. Pass float64."""
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    if beta == 0.0:
        return (p * (log_p - log_q)).sum(-1)
    if beta == 1.0:
        return (q * (log_q - log_p)).sum(-1)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return (beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m)).sum(-1)


def cross_entropies(student: Tensor, targets: Tensor) -> Tensor:
    """Returns the cross-entropy of each row. Pass float64."""
    return -student.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)


def reduced(rows: Tensor, ids: Tensor, reduction: str, normalizer: float | None = None) -> Tensor:
    """Returns the loss: "none", "sum", or "mean" over the rows with a span. `normalizer` replaces their number."""
    rows = torch.where(ids > 0, rows, 0.0)
    if reduction == "none":
        return rows
    return rows.sum() / (1 if reduction == "sum" else normalizer or max(1, int((ids > 0).sum())))


def assert_close(got: Tensor, exact: Tensor, atol: float, rtol: float, error: float, rms: bool = False) -> None:
    """Compares with the project's tolerance and with ours. The exact gradient is rounded to its dtype, as theirs is."""
    got, exact = got.detach().cpu().double(), exact.detach().to(got.dtype).double()
    if rms:
        assert (got - exact).square().mean().sqrt() <= max(rtol * exact.square().mean().sqrt(), atol)
    else:
        torch.testing.assert_close(got, exact, atol=atol, rtol=rtol)
    assert (got - exact).norm() <= error * exact.norm()
