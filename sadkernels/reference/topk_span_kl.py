"""The definition of the top-k losses: KL to a teacher's top-k columns, mixed with cross-entropy (eq. 13 of the paper).

q = softmax(z / T) over the first V columns is the student's distribution. The KL compares k + 1 outcomes: the teacher's k
columns, and the tail, which is all other columns together: q_tail = sum of q over the tail. y is the row's label. With
KL(p || q) = sum over outcomes of p (expm1(r) - r), r = log q - log p, as in `sadkernels.reference.span_kl`:

    value                     alpha KL(p || q)                    + (1 - alpha) (-log q_y)
    T dvalue/dz_j, top-k      alpha (q_j - p_j)                   + (1 - alpha) (q_j - [j = y])
    T dvalue/dz_j, tail       alpha q_j (1 - p_tail / q_tail)     + (1 - alpha) (q_j - [j = y])

Cross-entropy alone has k = 0 and alpha = 0.

Two rules keep the digits of small numbers. -log q_y is computed as (1 - q_y) + (expm1(log q_y) - log q_y), the KL of the
label and all other columns, which is accurate for q_y near 1. A sum over some of the columns adds these columns; it never
subtracts the others from a total, so a q_tail of 1e-6 is accurate.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig
from sadkernels.reference.span_kl import Logits, kl_terms, new_logits, read_rows, write_gradient
from sadkernels.topk import TopkTarget, TopkValues

__all__ = ["backward", "forward", "forward_backward", "new_logits"]


class _LogSumExps(NamedTuple):
    """z / T, its log-sum-exps over groups of a row's columns, -inf over an empty group, and masks of the groups.

    z / T and the log-sum-exps are relative to the origin of the row.
    """

    tempered: Tensor  # (N, V)
    topk: Tensor  # (N, k), over each top-k column alone; -inf for repeated and missing columns
    label: Tensor  # (N,), over the label
    rest: Tensor  # (N,), over the columns that are neither in the top-k nor the label
    tail: Tensor  # (N,), over the columns outside the top-k
    all: Tensor  # (N,)
    has_tail: Tensor  # (N,) bool, whether there is a column outside the top-k
    in_topk: Tensor  # (N, V) bool
    state: Tensor  # (4, N), see `TopkValues`


def _gather(z: Tensor, columns: Tensor, valid: Tensor) -> Tensor:
    """Returns z (N, V) at `columns` (N, k), -inf if they are not valid."""
    return torch.where(valid, z.gather(1, torch.where(valid, columns, 0).long()), -torch.inf)


def _mask(z: Tensor, columns: Tensor, valid: Tensor) -> Tensor:
    """Returns a mask (N, V) that is True at the valid ones of `columns` (N, k)."""
    n, v = z.shape
    mask = torch.zeros((n, v + 1), dtype=torch.bool, device=z.device)  # the extra column takes what is not valid
    return mask.scatter_(1, torch.where(valid, columns, v).long(), True)[:, :v]


def _log_sum_exps(logits: Logits, target: TopkTarget, state: Tensor | None = None) -> _LogSumExps:
    """Returns the log-sum-exps of N rows; the one over the rest is that of `state` if given."""
    origin, valid = logits.largest(), target.valid()
    z = logits.tempered(origin)
    in_topk = _mask(z, target.columns, valid)
    topk = _gather(z, target.columns, valid)
    label = torch.full_like(z[:, 0], -torch.inf)
    label_in_tail = label  # the label's logit if it is outside the top-k
    excluded = in_topk
    if target.labels is not None:
        column, has_label = target.labels[:, None], target.labels[:, None] >= 0
        label = _gather(z, column, has_label)[:, 0]
        label_in_topk = (valid & (target.columns == column)).any(-1)
        label_in_tail = torch.where(label_in_topk, -torch.inf, label)
        excluded = in_topk | _mask(z, column, has_label)
    if state is None:
        others = logits._replace(y=torch.where(excluded, -torch.inf, logits.y))
        rest_origin = others.largest()
        rest_sum = torch.logsumexp(others.tempered(rest_origin), dim=-1)
    else:
        _, rest_sum, _, rest_origin = state
    rest = rest_sum + (rest_origin - origin) * logits.factor
    tail = torch.logaddexp(rest, label_in_tail)
    total = torch.logsumexp(torch.cat([topk, tail[:, None]], dim=1), dim=-1)
    state = torch.stack([total, rest_sum, origin, rest_origin])
    return _LogSumExps(z, topk, label, rest, tail, total, valid.sum(-1) < z.shape[1], in_topk, state)


def _kl(lse: _LogSumExps, target: TopkTarget) -> Tensor:
    """Returns KL(p || q) (N,) over the k + 1 outcomes."""

    def term(log_p: Tensor, log_q: Tensor) -> Tensor:
        return kl_terms(log_p.exp(), log_q.exp(), log_q - log_p)

    topk_terms = term(target.log_p, lse.topk - lse.all[:, None])
    tail_term = term(target.log_tail, lse.tail - lse.all)
    return torch.where(target.valid(), topk_terms, 0).sum(-1) + torch.where(lse.has_tail, tail_term, 0)


def _cross_entropy(lse: _LogSumExps, target: TopkTarget) -> Tensor:
    """Returns -log q_y (N,), 0 on rows without a label."""
    log_q = lse.label - lse.all
    other_topk = torch.where(target.columns == target.labels[:, None], -torch.inf, lse.topk)
    log_not_label = torch.logsumexp(torch.cat([other_topk, lse.rest[:, None]], dim=1), dim=-1) - lse.all
    value = log_not_label.exp() + kl_terms(torch.ones_like(log_q), log_q.exp(), log_q)
    return torch.where(target.labels >= 0, value, 0)


def _student_rows(student: Tensor, active: Tensor, config: DivergenceConfig, target: TopkTarget) -> Logits:
    return read_rows(student, active, config, "student", target.log_p.dtype)


def forward(student: Tensor, target: TopkTarget, kinds: Tensor, config: DivergenceConfig, *, stats: bool) -> TopkValues:
    """Returns the loss and the state of every row, and with `stats` its entropy and argmax.

    Args:
        student: (..., V_s) logits, N rows in total.
        target: The teacher's top-k log-probabilities and the labels of the N rows.
        kinds: (N,) uint8. Rows of kind 0 are not read; all their results are 0.
        config: The number of columns, and how the student's logits become a distribution.
        stats: Whether to compute entropy and argmax.
    """
    read = kinds != 0
    lse = _log_sum_exps(_student_rows(student, read, config, target), target)
    value = torch.zeros_like(lse.all)
    if target.alpha > 0:
        value = value + target.alpha * _kl(lse, target)
    if target.labels is not None:
        value = value + (1 - target.alpha) * _cross_entropy(lse, target)
    state = torch.where(read, lse.state, 0)
    value = torch.where(read, value, 0)
    if not stats:
        return TopkValues(value, state)
    log_q = lse.tempered - lse.all[:, None]
    entropy = -torch.where(log_q == -torch.inf, 0, log_q.exp() * log_q).sum(-1)
    logits = student[..., : config.vocab_size].reshape(log_q.shape)
    argmax = torch.where(read[:, None], logits, 0).argmax(-1)  # the first of equal values
    return TopkValues(value, state, torch.where(read, entropy, 0), argmax)


def backward(
    student: Tensor,
    target: TopkTarget,
    kinds: Tensor,
    state: Tensor,
    weights: Tensor,
    config: DivergenceConfig,
    *,
    grad: Tensor,
) -> None:
    """Writes weights[n] dvalue[n] / dstudent to `grad`, and zeros to its other rows and columns.

    Args:
        student: As in `forward`; likewise `target`, `kinds` and `config`.
        state: (4, N), from `forward`.
        weights: (N,), the derivative of the loss by each row's value. Rows of weight 0 get zeros.
        grad: (..., V_s), with the shape and dtype of `student`; may be `student` itself.
    """
    active = (kinds != 0) & (weights != 0)
    logits = _student_rows(student, active, config, target)
    lse, alpha, valid = _log_sum_exps(logits, target, state), target.alpha, target.valid()
    z, q = lse.tempered, (lse.tempered - lse.all[:, None]).exp()
    d_tempered = torch.zeros_like(q)  # T dvalue/dz
    if alpha > 0:
        p = torch.where(valid, target.log_p.exp(), 0)
        in_topk = q - torch.zeros_like(q).scatter_add_(1, torch.where(valid, target.columns, 0).long(), p)
        tail_p = (target.log_tail[:, None] + z - lse.tail[:, None]).exp()  # p_tail q_j / q_tail
        in_tail = torch.where(z == -torch.inf, 0, q - tail_p)
        d_tempered = d_tempered + alpha * torch.where(lse.in_topk, in_topk, in_tail)
    if target.labels is not None:
        labels = target.labels[:, None]
        d_cross_entropy = q - _mask(z, labels, labels >= 0).to(q.dtype)
        d_tempered = d_tempered + (1 - alpha) * torch.where(labels >= 0, d_cross_entropy, 0)
    write_gradient(grad, d_tempered, active, weights, logits.slope, config)


def forward_backward(
    student: Tensor,
    target: TopkTarget,
    kinds: Tensor,
    weights: Tensor,
    config: DivergenceConfig,
    *,
    stats: bool,
    grad: Tensor,
) -> TopkValues:
    """Runs `forward` and `backward` in one call."""
    values = forward(student, target, kinds, config, stats=stats)
    backward(student, target, kinds, values.state, weights, config, grad=grad)
    return values
