"""The definition of the span KL: the divergence of every row, its gradient and its statistics.

The span losses are weighted sums of these rows: eq. 4 and 5 of the paper sum KL(p_T || p_S) over the reasoning and the
action tokens, and eq. 6 adds both sums with their lambdas.

p = softmax(z_t / T) is the teacher's distribution and q = softmax(z_s / T) the student's, over the first V columns, with the
logits z of `sadkernels.divergence`. Let m = beta p + (1 - beta) q, and

    KL(a || b) = sum_v a (expm1(r) - r) with r = log b - log a

Then, with dlogp = (dD / dlog q) / q up to a constant, which cancels in the gradient:

    name         divergence D                             dlogp                         gradient dD / dz_s
    forward_kl   KL(p || q)                               -                             (q - p) / T
    reverse_kl   KL(q || p)                               log q - log p                 q (dlogp - E_q[dlogp]) / T
    jsd          beta KL(p || m) + (1 - beta) KL(q || m)  (1 - beta) (log q - log m)    q (dlogp - E_q[dlogp]) / T

The usual sum_v a (log a - log b) has the same value, because sum_v (b - a) = 0. But each term a (expm1(r) - r) is
non-negative. So rounding cannot make the sum negative, and the sum keeps its digits if b is close to a.

The arithmetic is float32, or float64 if an input is float64. Rows of kind 0 never influence a result, even if they hold NaN.
No function synchronizes with the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig, RowValues


class Logits(NamedTuple):
    """The logits of one side in the form that the softmax uses.

    Args:
        y: (N, V), the logit x that the model returned or, with a cap, tanh(scale x / cap).
        factor: z / T = factor y.
        slope: (N, V) or a number, dz / dx.
    """

    y: Tensor
    factor: float
    slope: Tensor | float

    def largest(self) -> Tensor:
        """(N,), the largest y, or 0 if every y is -inf: the origin of the row."""
        largest = self.y.amax(-1)
        return torch.where(largest == -torch.inf, 0, largest)

    def tempered(self, origin: Tensor) -> Tensor:
        """(N, V), z / T relative to that of `origin` (N,)."""
        return (self.y - origin[:, None]) * self.factor


def accumulation_dtype(student: Tensor, teacher: Tensor) -> torch.dtype:
    """Returns float64 if an input is float64, else float32."""
    return torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32


def read_rows(x: Tensor, active: Tensor, config: DivergenceConfig, side: str, dtype: torch.dtype) -> Logits:
    """Returns the rows (N, V) of `side`, "student" or "teacher". Rows that are not active are read as zeros."""
    scale, cap = getattr(config, f"{side}_scale"), getattr(config, f"{side}_softcap")
    x = x[..., : config.vocab_size].reshape(-1, config.vocab_size)
    x, factor = torch.where(active[:, None], x, 0).to(dtype), config.factors[side == "teacher"]
    if cap is None:
        return Logits(x, factor, scale)
    tanh = torch.tanh(x * (scale / cap))
    return Logits(tanh, factor, scale * (1 - tanh * tanh))


def _both_sides(student: Tensor, teacher: Tensor, active: Tensor, config: DivergenceConfig) -> tuple[Logits, Logits]:
    dtype = accumulation_dtype(student, teacher)
    return read_rows(student, active, config, "student", dtype), read_rows(teacher, active, config, "teacher", dtype)


def kl_terms(a: Tensor, b: Tensor, r: Tensor) -> Tensor:
    """Returns a (expm1(r) - r) with r = log b - log a; the term is b if a == 0, and +inf if b == 0 < a."""
    near = torch.where(r.abs() < 0.5, r, 0)
    h = torch.zeros_like(r)  # expm1(r) - r = r^2 (1/2! + r/3! + r^2/4! + ...), by Horner's rule
    for k in range(18 if r.dtype == torch.float64 else 10, 1, -1):
        h = (h * near + 1.0) / k
    far = torch.where(a == 0, b, b - a - a * r)
    return torch.where(r.abs() < 0.5, a * (h * near * near), far)


def _log_mixture_ratio(log_ratio: Tensor, weight_a: float, weight_b: float) -> Tensor:
    """Returns log((weight_a a + weight_b b) / a) = log(weight_a + weight_b e^log_ratio) with log_ratio = log(b / a).

    The weights add up to 1. Both are arguments, because 1 - weight has no digits of a small weight.
    """
    growth = weight_b * torch.expm1(log_ratio)  # of the argument over 1
    far = torch.logaddexp(torch.full_like(log_ratio, math.log(weight_a)), log_ratio + math.log(weight_b))
    return torch.where(growth.abs() < 0.5, torch.log1p(growth), far)


def _divergence_terms(log_p: Tensor, log_q: Tensor, config: DivergenceConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Returns, per column (N, V): the terms of the divergence, the terms of E_q[dlogp], and dlogp.

    The last two are zeros for forward_kl, whose gradient does not use them. The terms of E_q[dlogp] are those of the
    divergence for reverse_kl, and the student's part of it for jsd: E_q[r] = KL(q || p).
    """
    p, q, r = log_p.exp(), log_q.exp(), log_q - log_p
    if config.divergence == "forward_kl":
        return kl_terms(p, q, r), torch.zeros_like(r), torch.zeros_like(r)
    if config.divergence == "reverse_kl":
        terms = kl_terms(q, p, -r)
        return terms, terms, r
    beta, rest = config.beta, 1 - config.beta
    m = beta * p + rest * q
    log_m_over_q = _log_mixture_ratio(-r, rest, beta)
    log_m_over_p = _log_mixture_ratio(r, beta, rest)
    student_terms = rest * kl_terms(q, m, log_m_over_q)
    teacher_terms = beta * kl_terms(p, m, log_m_over_p)
    return teacher_terms + student_terms, student_terms, -rest * log_m_over_q


def new_logits(shape: Sequence[int], like: Tensor) -> Tensor:
    """Returns uninitialized memory for logits or their gradient: contiguous, with the dtype and device of `like`."""
    return like.new_empty(shape)


def log_sum_exps(student: Tensor, teacher: Tensor, kinds: Tensor, config: DivergenceConfig) -> Tensor:
    """Returns the log-sum-exps (4, N) of z / T: the log-sums of student and teacher, then their origins.

    They are 0 on rows of kind 0. Arguments as in `forward`.
    """
    read = kinds != 0
    sides = _both_sides(student, teacher, read, config)
    origins = [side.largest() for side in sides]
    log_sums = [torch.logsumexp(side.tempered(origin), dim=-1) for side, origin in zip(sides, origins)]
    return torch.where(read, torch.stack(log_sums + origins), 0)


def forward(
    student: Tensor, teacher: Tensor, kinds: Tensor, config: DivergenceConfig, *, stats: bool, lse: Tensor | None = None
) -> RowValues:
    """Returns the divergence and the state of every row, and with `stats` its entropies and argmax.

    Args:
        student: (..., V_s) logits, N rows in total.
        teacher: (..., V_t) logits.
        kinds: (N,) uint8. Rows of kind 0 are not read; all their results are 0.
        config: The divergence, and how logits become distributions.
        stats: Whether to compute entropies and argmax.
        lse: (4, N) log-sum-exps to use instead of the rows' own, if the rows are slices of longer rows. The results are
            then this slice's share of the sums.
    """
    if lse is None:
        lse = log_sum_exps(student, teacher, kinds, config)
    read = kinds != 0
    s, t = _both_sides(student, teacher, read, config)
    log_q, log_p = s.tempered(lse[2]) - lse[0, :, None], t.tempered(lse[3]) - lse[1, :, None]
    terms, mean_dlogp_terms, _ = _divergence_terms(log_p, log_q, config)
    value, mean_dlogp = (torch.where(read, x.sum(-1), 0) for x in (terms, mean_dlogp_terms))
    state = torch.cat([lse[:2], mean_dlogp[None], lse[2:]])
    if not stats:
        return RowValues(value, state)
    entropies = torch.stack([-torch.where(x == -torch.inf, 0, x.exp() * x).sum(-1) for x in (log_p, log_q)])
    logits = [x[..., : config.vocab_size].reshape(-1, config.vocab_size) for x in (student, teacher)]
    argmax = torch.stack([torch.where(read[:, None], x, 0).argmax(-1) for x in logits])  # the first of equal values
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
    """Writes weights[n] dvalue[n] / dstudent to `grad`, and zeros to its other rows and columns.

    Args:
        student: As in `forward`; likewise `teacher`, `kinds` and `config`.
        state: (5, N), from `forward`.
        weights: (N,), the derivative of the loss by each row's value. Rows of weight 0 get zeros.
        grad: (..., V_s), with the shape and dtype of `student`; may be `student` itself.
    """
    active = (kinds != 0) & (weights != 0)
    s, t = _both_sides(student, teacher, active, config)
    log_q, log_p = s.tempered(state[3]) - state[0, :, None], t.tempered(state[4]) - state[1, :, None]
    q = log_q.exp()
    if config.divergence == "forward_kl":
        d_tempered = q - log_p.exp()  # T dD / dz_s
    else:
        _, _, dlogp = _divergence_terms(log_p, log_q, config)
        d_tempered = torch.where(q == 0, 0, q * (dlogp - state[2, :, None]))
    write_gradient(grad, d_tempered, active, weights, s.slope, config)


def write_gradient(
    grad: Tensor, d_tempered: Tensor, active: Tensor, weights: Tensor, slope: Tensor | float, config: DivergenceConfig
) -> None:
    """Writes weights d_tempered slope / T to the active rows of `grad` (..., V_s), and zeros elsewhere.

    `d_tempered` (N, V) is the derivative of the rows' values by z / T.
    """
    g = torch.where(active[:, None], (weights / config.temperature)[:, None] * d_tempered * slope, 0)
    grad.zero_()
    grad[..., : config.vocab_size] = g.view(*grad.shape[:-1], config.vocab_size).to(grad.dtype)


def forward_backward(
    student: Tensor, teacher: Tensor, kinds: Tensor, weights: Tensor, config: DivergenceConfig, *, stats: bool, grad: Tensor
) -> RowValues:
    """Runs `forward` and `backward` in one call."""
    values = forward(student, teacher, kinds, config, stats=stats)
    backward(student, teacher, kinds, values.state, weights, config, grad=grad)
    return values


def scale(grad: Tensor, kinds: Tensor, factor: Tensor) -> None:
    """Multiplies the rows of non-zero kind of `grad` (..., V) by the 0-dim `factor`. The other rows do not change."""
    rows = torch.where(kinds != 0, factor.to(torch.promote_types(grad.dtype, torch.float32)), 1)
    grad.copy_(grad * rows.view(*grad.shape[:-1], 1))
