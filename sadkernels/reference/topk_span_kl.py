"""KL to a teacher known by its likeliest columns, mixed with cross-entropy: value and gradient of every row, to be read.

q = softmax(z / T) over the first V columns. The outcomes of the KL are the k listed columns and the tail, all other columns
as one, with q_tail the sum of their q; with KL(p || q) = sum of p (expm1(r) - r), r = log q - log p, as in
`sadkernels.reference.span_kl`, and y the row's label:

    value    alpha KL(p || q) + (1 - alpha) (-log q_y)
    d/dz_j   (alpha (q_j - p_j)                    + (1 - alpha) (q_j - [j = y])) / T    listed columns
             (alpha q_j (1 - p_tail / q_tail)      + (1 - alpha) (q_j - [j = y])) / T    all others

Cross-entropy alone has nothing listed and alpha = 0. -log q_y is taken as the KL of one outcome and its tail, (1 - q_y) +
(expm1(log q_y) - log q_y), which keeps its digits when q_y is near 1. Every sum over columns that leaves some out is a sum
of the others, never a difference, so that a q_tail of 1e-6 is right to its last digits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig
from sadkernels.reference.span_kl import Logits, kl_terms, new_logits, read_rows
from sadkernels.topk import TopkTarget, TopkValues

__all__ = ["backward", "forward", "forward_backward", "new_logits"]


class _Outcomes(NamedTuple):
    """Log-sum-exps of z / T over parts of a row's columns, and where they are; -inf where there is none."""

    listed: Tensor  # (N, k), each entry alone
    label: Tensor  # (N,)
    rest: Tensor  # (N,), neither listed nor the label
    tail: Tensor  # (N,), not listed
    everything: Tensor  # (N,)
    has_tail: Tensor  # (N,) bool
    of_listed: Tensor  # (N, V) bool


def _at(z: Tensor, column: Tensor, exists: Tensor) -> Tensor:
    return torch.where(exists, z.gather(1, torch.where(exists, column, 0).long()), -torch.inf)


def _mark(z: Tensor, column: Tensor, exists: Tensor) -> Tensor:
    """(N, V) bool, True at the columns that exist."""
    spare = z.shape[1]  # where those go that do not
    marked = torch.zeros((z.shape[0], spare + 1), dtype=torch.bool, device=z.device)
    return marked.scatter_(1, torch.where(exists, column, spare).long(), True)[:, :spare]


def _outcomes(z: Tensor, target: TopkTarget, rest: Tensor | None = None) -> _Outcomes:
    counts = target.counts()
    of_listed = _mark(z, target.columns, counts)
    listed = _at(z, target.columns, counts)
    label = torch.full_like(z[:, 0], -torch.inf)
    label_alone = label
    taken = of_listed
    if target.labels is not None:
        column, exists = target.labels[:, None], target.labels[:, None] >= 0
        label = _at(z, column, exists)[:, 0]
        in_list = (counts & (target.columns == column)).any(-1)
        label_alone = torch.where(in_list, -torch.inf, label)
        taken = of_listed | _mark(z, column, exists)
    if rest is None:
        rest = torch.logsumexp(torch.where(taken, -torch.inf, z), dim=-1)
    tail = torch.logaddexp(rest, label_alone)
    everything = torch.logsumexp(torch.cat([listed, tail[:, None]], dim=1), dim=-1)
    return _Outcomes(listed, label, rest, tail, everything, counts.sum(-1) < z.shape[1], of_listed)


def _kl(o: _Outcomes, target: TopkTarget) -> Tensor:
    def term(log_p: Tensor, log_q: Tensor) -> Tensor:
        return kl_terms(log_p.exp(), log_q.exp(), log_q - log_p)

    of_listed = term(target.log_p, o.listed - o.everything[:, None])
    of_tail = term(target.log_tail, o.tail - o.everything)
    return torch.where(target.counts(), of_listed, 0).sum(-1) + torch.where(o.has_tail, of_tail, 0)


def _cross_entropy(o: _Outcomes, target: TopkTarget) -> Tensor:
    log_q = o.label - o.everything
    others = torch.where(target.columns == target.labels[:, None], -torch.inf, o.listed)
    not_y = torch.logsumexp(torch.cat([others, o.rest[:, None]], dim=1), dim=-1) - o.everything
    value = not_y.exp() + kl_terms(torch.ones_like(log_q), log_q.exp(), log_q)
    return torch.where(target.labels >= 0, value, 0)


def _rows(student: Tensor, active: Tensor, config: DivergenceConfig, target: TopkTarget) -> Logits:
    return read_rows(student, active, config, "student", target.log_p.dtype)


def forward(student: Tensor, target: TopkTarget, kinds: Tensor, config: DivergenceConfig, *, stats: bool) -> TopkValues:
    """The loss of every supervised row.

    Args:
        student: (..., V_s) logits; N rows in all.
        target: What they should be.
        kinds: (N,) uint8, 0 for rows that are not read.
        config: Columns, temperature, scale and cap of the student's logits.
        stats: Whether entropy and argmax are wanted.
    """
    read = kinds != 0
    z = _rows(student, read, config, target).tempered
    o = _outcomes(z, target)
    value = torch.zeros_like(o.everything)
    if target.alpha > 0:
        value = value + target.alpha * _kl(o, target)
    if target.labels is not None:
        value = value + (1 - target.alpha) * _cross_entropy(o, target)
    state = torch.where(read, torch.stack([o.everything, o.rest]), 0)
    value = torch.where(read, value, 0)
    if not stats:
        return TopkValues(value, state)
    log_q = z - o.everything[:, None]
    entropy = -torch.where(log_q == -torch.inf, 0, log_q.exp() * log_q).sum(-1)
    columns = student[..., : config.vocab_size].reshape(z.shape)
    argmax = torch.where(read[:, None], columns, 0).argmax(-1)  # first of equals
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
    """Writes weights[n] d value[n] / d student to all of `grad` (..., V_s), zeros included; `grad` may be `student` itself.

    Args:
        student: As in `forward`, likewise `target`, `kinds`, `how`.
        state: (2, N), from `forward`.
        weights: (N,), the derivative of the loss by each row's value; rows of weight 0 get zeros.
        grad: Shape and dtype of `student`.
    """
    active = (kinds != 0) & (weights != 0)
    logits = _rows(student, active, config, target)
    z, alpha = logits.tempered, target.alpha
    o = _outcomes(z, target, rest=state[1])
    everything, counts = state[0], target.counts()
    q = (z - everything[:, None]).exp()
    by_column = torch.zeros_like(q)
    if alpha > 0:
        p = torch.where(counts, target.log_p.exp(), 0)
        of_listed = q - torch.zeros_like(q).scatter_add_(1, torch.where(counts, target.columns, 0).long(), p)
        tail_p = (target.log_tail[:, None] + z - o.tail[:, None]).exp()  # p_tail q_j / q_tail
        of_tail = torch.where(z == -torch.inf, 0, q - tail_p)
        by_column = by_column + alpha * torch.where(o.of_listed, of_listed, of_tail)
    if target.labels is not None:
        labels = target.labels[:, None]
        of_label = q - _mark(z, labels, labels >= 0).to(q.dtype)
        by_column = by_column + (1 - alpha) * torch.where(labels >= 0, of_label, 0)
    g = torch.where(active[:, None], (weights / config.temperature)[:, None] * by_column * logits.slope, 0)
    grad.zero_()
    grad[..., : config.vocab_size] = g.view(*grad.shape[:-1], config.vocab_size).to(grad.dtype)


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
    """`forward` and `backward` in one call."""
    values = forward(student, target, kinds, config, stats=stats)
    backward(student, target, kinds, values.state, weights, config, grad=grad)
    return values
