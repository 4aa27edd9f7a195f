"""KL(teacher || student) per row, its gradient and its statistics, written to be read.

With p = softmax(t / T), q = softmax(s / T) over the first V columns and r = log q - log p,

    KL        = sum_v p (expm1(r) - r)        since sum_v (q - p) = 0
    dKL / ds  = (q - p) / T

The sum is taken in this form and not as sum_v p (log p - log q) because every term is non-negative: rounding cannot
make the sum negative, and it keeps its digits when q is close to p.

Arithmetic is float32, or float64 when an input is. Rows whose kind is 0 never influence anything, whatever
they hold. Nothing here waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _log_softmax(x: Tensor, kinds: Tensor, vocab_size: int, temperature: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tempered log-probabilities (N, V) and log-sum-exps (N,); unsupervised rows are read as zeros."""
    x = x[..., :vocab_size].reshape(-1, vocab_size)
    x = torch.where(kinds[:, None] != 0, x, 0).to(dtype) / temperature
    lse = torch.logsumexp(x, dim=-1)
    return x - lse[:, None], lse


def _per_column_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The non-negative terms p (expm1(r) - r), exact at the edges: p == 0 gives q, q == 0 < p gives +inf."""
    p, q, r = log_p.exp(), log_q.exp(), log_q - log_p
    near = torch.where(r.abs() < 0.5, r, 0)
    h = torch.zeros_like(r)  # expm1(r) - r = r^2 (1/2! + r/3! + r^2/4! + ...), by Horner's rule
    for k in range(18 if r.dtype == torch.float64 else 10, 1, -1):
        h = (h * near + 1.0) / k
    far = torch.where(p == 0, q, q - p - p * r)
    return torch.where(r.abs() < 0.5, p * (h * near * near), far)


def accumulation_dtype(student: Tensor, teacher: Tensor) -> torch.dtype:
    """float64 when an input is float64, else float32."""
    return torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32


def forward(
    student: Tensor, teacher: Tensor, kinds: Tensor, *, vocab_size: int, temperature: float, stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """KL of every supervised row.

    Args:
        student: (..., V_s) logits; N rows in all.
        teacher: (..., V_t) logits.
        kinds: (N,) uint8, 0 for rows that are not read.
        vocab_size: V, the columns that take part, at most min(V_s, V_t).
        temperature: T, divides both sides' logits.
        stats: Whether `extras` is wanted.

    Returns:
        kl (N,), 0 on rows not read; lse (2, N), log-sum-exps of student and teacher; extras (3, N): teacher entropy,
        student entropy, 1 where the argmax columns agree ((3, 0) without `stats`).
    """
    dtype = accumulation_dtype(student, teacher)
    log_q, lse_s = _log_softmax(student, kinds, vocab_size, temperature, dtype)
    log_p, lse_t = _log_softmax(teacher, kinds, vocab_size, temperature, dtype)
    read = kinds != 0
    kl = torch.where(read, _per_column_kl(log_p, log_q).sum(-1), 0)
    lse = torch.where(read, torch.stack([lse_s, lse_t]), 0)
    if not stats:
        return kl, lse, kl.new_empty((3, 0))
    entropies = [-torch.where(log_x == -torch.inf, 0, log_x.exp() * log_x).sum(-1) for log_x in (log_p, log_q)]
    best = [x[..., :vocab_size].reshape(-1, vocab_size).argmax(-1) for x in (student, teacher)]  # first of equals
    agree = (best[0] == best[1]).to(dtype)
    return kl, lse, torch.where(read, torch.stack([*entropies, agree]), 0)


def backward(
    student: Tensor,
    teacher: Tensor,
    kinds: Tensor,
    lse: Tensor,
    weights: Tensor,
    *,
    vocab_size: int,
    temperature: float,
    grad: Tensor,
) -> None:
    """Writes weights[n] dKL_n/dstudent to all of `grad` (..., V_s), zeros included; `grad` may be `student` itself.

    Args:
        student: As in `forward`, likewise `teacher`, `kinds`, `vocab_size`, `temperature`.
        lse: (2, N), from `forward`.
        weights: (N,), the derivative of the loss by each row's KL; rows of weight 0 get zeros.
        grad: Shape and dtype of `student`.
    """
    dtype = accumulation_dtype(student, teacher)
    active = ((kinds != 0) & (weights != 0))[:, None]
    q, p = (
        (torch.where(active, x[..., :vocab_size].reshape(-1, vocab_size), 0).to(dtype) / temperature - l[:, None]).exp()
        for x, l in ((student, lse[0]), (teacher, lse[1]))
    )
    g = torch.where(active, (weights / temperature)[:, None] * (q - p), 0)
    grad.zero_()
    grad[..., :vocab_size] = g.view(*grad.shape[:-1], vocab_size).to(grad.dtype)


def forward_backward(
    student: Tensor,
    teacher: Tensor,
    kinds: Tensor,
    weights: Tensor,
    *,
    vocab_size: int,
    temperature: float,
    stats: bool,
    grad: Tensor,
) -> tuple[Tensor, Tensor]:
    """`forward` and `backward` in one call; returns kl and extras."""
    options = {"vocab_size": vocab_size, "temperature": temperature}
    kl, lse, extras = forward(student, teacher, kinds, stats=stats, **options)
    backward(student, teacher, kinds, lse, weights, grad=grad, **options)
    return kl, extras


def scale(grad: Tensor, kinds: Tensor, factor: Tensor) -> None:
    """Multiplies the supervised rows of `grad` (..., V) by the 0-dim `factor`; the others stay as they are."""
    rows = torch.where(kinds != 0, factor.to(torch.promote_types(grad.dtype, torch.float32)), 1)
    grad.copy_(grad * rows.view(*grad.shape[:-1], 1))
