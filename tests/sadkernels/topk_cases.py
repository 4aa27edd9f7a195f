"""Inputs for the tests of the top-k KL and the cross-entropy, and their float64 truth, column by column."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.sadkernels.span_kl_cases import logits, output

IDS = torch.tensor([0, 1, 2, 1, 0, 2, 2, -100])  # all kinds and padding


def case(rows: int, vocab: int, k: int, dtype=torch.float32, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Returns student logits, and the teacher's top-k log-probabilities and columns in random order."""
    teacher = logits(rows, vocab).div(temperature).log_softmax(-1)
    logprobs, ids = teacher.topk(k, dim=-1)
    order = torch.stack([torch.randperm(k) for _ in range(rows)])
    return logits(rows, vocab, dtype), logprobs.gather(1, order), ids.gather(1, order)


def by_hand(
    student: Tensor,
    logprobs: Tensor | None,
    ids: Tensor | None,
    *,
    targets: Tensor | None = None,
    alpha: float = 1.0,
    tail: str = "bucket",
    temperature: float = 1.0,
) -> Tensor:
    """Returns (N,) losses of the rows from the formulas. Pass float64."""
    values = []
    for n, row in enumerate(student):
        log_q = (row / temperature).log_softmax(-1)
        kl = torch.zeros((), dtype=row.dtype)
        if alpha > 0:
            at = ids[n].long()
            log_p = logprobs[n].to(row.dtype)
            p = log_p.exp()
            if tail == "ignore":
                p, log_p = p / p.sum(), log_p - p.sum().log()
            kl = (p * (log_p - log_q[at])).sum()
            others = torch.ones(len(row), dtype=torch.bool).scatter(0, at, False)
            left = 1 - p.sum()
            if tail == "bucket" and others.any() and left > 0:
                kl = kl + left * (left.log() - torch.logsumexp(log_q[others], 0))
        ce = -log_q[targets[n]] if alpha < 1 else 0.0
        values.append(alpha * kl + (1 - alpha) * ce)
    return torch.stack(values)


def run(loss, student: Tensor, tensors: tuple[Tensor, ...], backend, upstream: float | Tensor = 1.0, **options):
    """Returns loss and gradient of `loss(student, *tensors, ...)` on a backend; both are moved to the CPU."""
    device = backend.device
    leaf, logits_ = output(student.to(device))
    options = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in options.items()}
    value = loss(logits_, *(x.to(device) for x in tensors), backend=backend.name, **options)
    value.backward(torch.as_tensor(upstream, dtype=value.dtype, device=device).expand(value.shape))
    return value.detach().cpu(), leaf.grad.cpu()


def truth(loss, student: Tensor, tensors: tuple[Tensor, ...], upstream: float | Tensor = 1.0, **options):
    """Returns loss and gradient of the reference in float64. A test compares its gradient with autograd of `by_hand`."""
    leaf = student.detach().double().requires_grad_()
    value = loss(leaf, *tensors, backend="reference", **options)
    value.backward(torch.as_tensor(upstream, dtype=value.dtype).expand(value.shape))
    return value.detach(), leaf.grad
