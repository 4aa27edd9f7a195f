"""Sums the statistics of both span losses on the device, and reads them only when they are logged."""

from __future__ import annotations

import torch
from torch import Tensor

from sad.losses import SpanStats

_KINDS = ("reason", "act")


class SpanMeter:
    """Collects `SpanStats` between two logs without waiting for the device."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, stats: SpanStats) -> None:
        """Adds the sums of one batch."""
        sums = torch.stack([*stats.reason, *stats.act])
        sums = sums.to(torch.float32 if sums.device.type == "mps" else torch.float64)  # counts pass 2^24
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self, device: torch.device) -> Tensor:
        """The sums (2, 5), one row per kind with the fields of `KindStats`, and begins anew."""
        dtype = torch.float32 if device.type == "mps" else torch.float64
        sums = torch.zeros(10, dtype=dtype, device=device) if self._sums is None else self._sums
        self._sums = None
        return sums.view(2, 5)


class MeanMeter:
    """The mean of a scalar between two logs, without waiting for the device."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._count = 0

    def add(self, value: Tensor) -> None:
        """One value, whose gradient is of no interest."""
        self._sum, self._count = self._sum + value.detach(), self._count + 1

    def take(self, device: torch.device) -> Tensor:
        """(2,), the sum and the number of values, and begins anew."""
        taken = torch.tensor([0.0, self._count], device=device)
        taken[0] = self._sum
        self._sum, self._count = 0.0, 0
        return taken


def span_metrics(sums: Tensor) -> dict[str, float]:
    """Names for a log: means per token of each kind. Waits for the device once.

    Args:
        sums: (2, 5) from `SpanMeter.take`, added up over the processes.

    Returns:
        For each kind that has tokens: `loss_<kind>` (KL, nats per token, not weighted by lambda), `agreement_<kind>`
        (share of tokens whose most likely token is the teacher's), `teacher_entropy_<kind>`, `student_entropy_<kind>`
        (nats) and `tokens_<kind>`.
    """
    metrics: dict[str, float] = {}
    for kind, (kl, tokens, teacher_entropy, student_entropy, agreements) in zip(_KINDS, sums.tolist()):
        if tokens:
            metrics[f"loss_{kind}"] = kl / tokens
            metrics[f"agreement_{kind}"] = agreements / tokens
            metrics[f"teacher_entropy_{kind}"] = teacher_entropy / tokens
            metrics[f"student_entropy_{kind}"] = student_entropy / tokens
            metrics[f"tokens_{kind}"] = int(tokens)
    return metrics


def mean_loss(sums: Tensor, lambda_reason: float, lambda_act: float) -> Tensor:
    """The loss of all tokens in `sums`: (lambda_r L_cot + lambda_a L_act) / (n_r + n_a), eq. 6 per token."""
    weighted = sum(weight * sums[row, 0] if weight else 0.0 for row, weight in enumerate((lambda_reason, lambda_act)))
    return weighted / sums[:, 1].sum().clamp(min=1)
