"""The divergence of every row, its gradient and its statistics, written to be read.

With p = softmax(z_t / T), q = softmax(z_s / T) over the first V columns, z as in `sadkernels.divergence`,
r = log q - log p, m = beta p + (1 - beta) q and KL(a || b) = sum_v a (expm1(log b - log a) - (log b - log a)):

    forward_kl   KL(p || q)                               d/dz_s = (q - p) / T
    reverse_kl   KL(q || p)                               d/dz_s = q (G - E_q[G]) / T,  G = r
    jsd          beta KL(p || m) + (1 - beta) KL(q || m)  d/dz_s = q (G - E_q[G]) / T,  G = (1 - beta) (log q - log m)

The sums are taken in this form and not as sum_v a (log a - log b), to which they are equal since sum_v (b - a) = 0, because
every term is non-negative: rounding cannot make the sum negative, and it keeps its digits when b is close to a.

Arithmetic is float32, or float64 when an input is. Rows whose kind is 0 never influence anything, whatever
they hold. Nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig, RowValues


def accumulation_dtype(student: Tensor, teacher: Tensor) -> torch.dtype:
    """float64 when an input is float64, else float32."""
    return torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32


class Logits(NamedTuple):
    """Rows as they are compared: z / T (N, V), and dz / dx, (N, V) or a number."""

    tempered: Tensor
    slope: Tensor | float


def read_rows(x: Tensor, active: Tensor, config: DivergenceConfig, side: str, dtype: torch.dtype) -> Logits:
    """The rows (N, V) of one side; those not active are read as zeros."""
    scale, cap = getattr(config, f"{side}_scale"), getattr(config, f"{side}_softcap")
    x = x[..., : config.vocab_size].reshape(-1, config.vocab_size)
    z = torch.where(active[:, None], x, 0).to(dtype) * scale
    if cap is None:
        return Logits(z / config.temperature, scale)
    tanh = torch.tanh(z / cap)
    return Logits(cap * tanh / config.temperature, scale * (1 - tanh * tanh))


def _both_sides(student: Tensor, teacher: Tensor, active: Tensor, config: DivergenceConfig) -> tuple[Logits, Logits]:
    dtype = accumulation_dtype(student, teacher)
    return read_rows(student, active, config, "student", dtype), read_rows(teacher, active, config, "teacher", dtype)


def kl_terms(a: Tensor, b: Tensor, r: Tensor) -> Tensor:
    """The non-negative a (expm1(r) - r), r = log b - log a; exact at the edges: a == 0 gives b, b == 0 < a gives +inf."""
    near = torch.where(r.abs() < 0.5, r, 0)
    h = torch.zeros_like(r)  # expm1(r) - r = r^2 (1/2! + r/3! + r^2/4! + ...), by Horner's rule
    for k in range(18 if r.dtype == torch.float64 else 10, 1, -1):
        h = (h * near + 1.0) / k
    far = torch.where(a == 0, b, b - a - a * r)
    return torch.where(r.abs() < 0.5, a * (h * near * near), far)


def _log_mixture_over(log_ratio: Tensor, weight: float) -> Tensor:
    """log((1 - weight) + weight e^log_ratio): of the mixture over its one part, from the log of the other part over it."""
    small = torch.where(log_ratio.abs() < 0.5, log_ratio, 0)
    far = torch.logaddexp(torch.full_like(log_ratio, math.log(1 - weight)), log_ratio + math.log(weight))
    return torch.where(log_ratio.abs() < 0.5, torch.log1p(weight * torch.expm1(small)), far)


def _terms_and_pull(log_p: Tensor, log_q: Tensor, config: DivergenceConfig) -> tuple[Tensor, Tensor, Tensor]:
    """By column, all (N, V): terms of the divergence; terms of E_q[G]; G itself (zeros where the gradient needs none)."""
    p, q, r = log_p.exp(), log_q.exp(), log_q - log_p
    if config.divergence == "forward_kl":
        return kl_terms(p, q, r), torch.zeros_like(r), torch.zeros_like(r)
    if config.divergence == "reverse_kl":
        terms = kl_terms(q, p, -r)
        return terms, terms, r
    beta = config.beta
    m = beta * p + (1 - beta) * q
    of_student = (1 - beta) * kl_terms(q, m, _log_mixture_over(-r, beta))
    of_teacher = beta * kl_terms(p, m, _log_mixture_over(r, 1 - beta))
    return of_teacher + of_student, of_student, -(1 - beta) * _log_mixture_over(-r, beta)


def new_logits(shape: Sequence[int], like: Tensor) -> Tensor:
    """Memory for logits or their gradient: dtype and device of `like`, contiguous, contents arbitrary."""
    return like.new_empty(shape)


def log_sum_exps(student: Tensor, teacher: Tensor, kinds: Tensor, config: DivergenceConfig) -> Tensor:
    """(2, N), log-sum-exps of z / T of student and teacher, 0 on rows not read; arguments as in `forward`."""
    read = kinds != 0
    sides = _both_sides(student, teacher, read, config)
    return torch.where(read, torch.stack([torch.logsumexp(x.tempered, dim=-1) for x in sides]), 0)


def forward(
    student: Tensor, teacher: Tensor, kinds: Tensor, config: DivergenceConfig, *, stats: bool, lse: Tensor | None = None
) -> RowValues:
    """The divergence of every supervised row.

    Args:
        student: (..., V_s) logits; N rows in all.
        teacher: (..., V_t) logits.
        kinds: (N,) uint8, 0 for rows that are not read.
        config: What is compared.
        stats: Whether entropies and argmax are wanted.
        lse: (2, N), log-sum-exps to use in place of the rows' own, for rows that are a slice of longer ones. The results
            then are this slice's share of the sums.
    """
    if lse is None:
        lse = log_sum_exps(student, teacher, kinds, config)
    read = kinds != 0
    of_student, of_teacher = _both_sides(student, teacher, read, config)
    log_q, log_p = of_student.tempered - lse[0, :, None], of_teacher.tempered - lse[1, :, None]
    terms, pull_terms, _ = _terms_and_pull(log_p, log_q, config)
    value, pull = (torch.where(read, x.sum(-1), 0) for x in (terms, pull_terms))
    state = torch.cat([lse, pull[None]])
    if not stats:
        return RowValues(value, state)
    entropies = torch.stack([-torch.where(x == -torch.inf, 0, x.exp() * x).sum(-1) for x in (log_p, log_q)])
    columns = [x[..., : config.vocab_size].reshape(-1, config.vocab_size) for x in (student, teacher)]
    argmax = torch.stack([torch.where(read[:, None], x, 0).argmax(-1) for x in columns])  # first of equals
    return RowValues(value, state, torch.where(read, entropies, 0), argmax)


def backward(
    student: Tensor,
    teacher: Tensor,
    kinds: Tensor,
    state: Tensor,
    weights: Tensor,
    config: DivergenceConfig,
    *,
    grad: Tensor,
) -> None:
    """Writes weights[n] d value[n] / d student to all of `grad` (..., V_s), zeros included; `grad` may be `student` itself.

    Args:
        student: As in `forward`, likewise `teacher`, `kinds`, `how`.
        state: (3, N), from `forward`.
        weights: (N,), the derivative of the loss by each row's value; rows of weight 0 get zeros.
        grad: Shape and dtype of `student`.
    """
    active = (kinds != 0) & (weights != 0)
    of_student, of_teacher = _both_sides(student, teacher, active, config)
    log_q, log_p = of_student.tempered - state[0, :, None], of_teacher.tempered - state[1, :, None]
    q = log_q.exp()
    if config.divergence == "forward_kl":
        by_column = q - log_p.exp()
    else:
        _, _, pull = _terms_and_pull(log_p, log_q, config)
        by_column = torch.where(q == 0, 0, q * (pull - state[2, :, None]))
    g = torch.where(active[:, None], (weights / config.temperature)[:, None] * by_column * of_student.slope, 0)
    grad.zero_()
    grad[..., : config.vocab_size] = g.view(*grad.shape[:-1], config.vocab_size).to(grad.dtype)


def forward_backward(
    student: Tensor, teacher: Tensor, kinds: Tensor, weights: Tensor, config: DivergenceConfig, *, stats: bool, grad: Tensor
) -> RowValues:
    """`forward` and `backward` in one call."""
    values = forward(student, teacher, kinds, config, stats=stats)
    backward(student, teacher, kinds, values.state, weights, config, grad=grad)
    return values


def scale(grad: Tensor, kinds: Tensor, factor: Tensor) -> None:
    """Multiplies the supervised rows of `grad` (..., V) by the 0-dim `factor`; the others stay as they are."""
    rows = torch.where(kinds != 0, factor.to(torch.promote_types(grad.dtype, torch.float32)), 1)
    grad.copy_(grad * rows.view(*grad.shape[:-1], 1))
