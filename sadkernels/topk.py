"""A row's target as a kernel reads it: a few listed columns with their probabilities, the rest as one tail, and a label.

Made by PyTorch from k numbers a row, once for all backends, in float64: the tail's probability is 1 - sum_i p_i, and float32
would leave nothing of a tail of 1e-8.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

TAILS = ("bucket", "ignore")
ABSENT = 2**31 - 1  # stands for a column that is not there, behind all that are
_SERIAL = 1 << 14  # entries that PyTorch works on without waking threads, which on a busy CPU are slow to come


class TopkTarget(NamedTuple):
    """The targets of N rows: alpha KL(p || q) + (1 - alpha) (-log q[label]), over k + 1 outcomes and over columns.

    `columns` (N, k) int32 in ascending order, ABSENT behind them; of a column that is repeated the first entry counts.
    `log_p` (N, k) and `log_tail` (N,), the log-probabilities of the listed columns and of all others together. `labels` (N,)
    int32, -1 for a row without, or None when no row has one. Rows that carry no span hold anything.
    """

    columns: Tensor
    log_p: Tensor
    log_tail: Tensor
    labels: Tensor | None
    alpha: float

    def counts(self) -> Tensor:
        """(N, k) bool: the entries that are columns of their own."""
        first = torch.ones_like(self.columns, dtype=torch.bool)
        first[:, 1:] = self.columns[:, 1:] != self.columns[:, :-1]
        return first & (self.columns != ABSENT)

    def entropy(self) -> Tensor:
        """(N,), in nats, of the k + 1 outcomes; 0 where only labels are given."""
        if self.columns.shape[1] == 0:
            return torch.zeros_like(self.log_tail)
        log_p = torch.cat([torch.where(self.counts(), self.log_p, -torch.inf), self.log_tail[:, None]], dim=1)
        return -torch.where(log_p == -torch.inf, 0, log_p.exp() * log_p).sum(-1)

    def best(self) -> Tensor:
        """(N,) int32: the likeliest listed column, the lowest of equals; where nothing is listed, the label."""
        if self.columns.shape[1] == 0:
            return self.labels
        return self.columns.gather(1, self.log_p.argmax(-1, keepdim=True))[:, 0]


def topk_target(
    logprobs: Tensor | None,
    ids: Tensor | None,
    labels: Tensor | None,
    *,
    vocab_size: int,
    tail: str,
    alpha: float,
    dtype: torch.dtype,
) -> TopkTarget:
    """From a list of columns, a label, or both, of N rows.

    Args:
        logprobs: (..., k), or None for labels alone.
        ids: (..., k) integers; those outside [0, vocab_size) are absent, whatever their log-probability.
        labels: (N,), from `row_labels`, or None.
        vocab_size: Columns of the student's softmax.
        tail: "bucket": what is not listed has the remaining probability. "ignore": the listed are renormalised, and the tail
            has none. A row with nothing listed has a tail of 1, and so a KL of 0.
        alpha: Share of the KL.
        dtype: Of the log-probabilities that come out.
    """
    if logprobs is None:
        nothing = torch.zeros(len(labels), dtype=dtype, device=labels.device)
        columns = torch.empty((len(labels), 0), dtype=torch.int32, device=labels.device)
        return TopkTarget(columns, nothing[:, None][:, :0], nothing, labels, alpha)
    k = ids.shape[-1]
    ids, logprobs = ids.reshape(-1, k), logprobs.reshape(-1, k)
    n = len(ids)
    columns = torch.empty((n, k), dtype=torch.int32, device=ids.device)
    log_p, log_tail = torch.empty((n, k), dtype=dtype, device=ids.device), torch.empty(n, dtype=dtype, device=ids.device)
    at_once = max(1, _SERIAL // k) if ids.device.type == "cpu" else max(1, n)
    for part in (slice(i, i + at_once) for i in range(0, n, at_once)):
        columns[part], log_p[part], log_tail[part] = _ordered(ids[part], logprobs[part], vocab_size, tail)
    return TopkTarget(columns, log_p, log_tail, labels, alpha)


def _ordered(ids: Tensor, logprobs: Tensor, vocab_size: int, tail: str) -> tuple[Tensor, Tensor, Tensor]:
    """`columns`, `log_p` and `log_tail` of a few rows, in float64."""
    ids, log_p = ids.to(torch.int64), logprobs.to(torch.float64)
    exists = (ids >= 0) & (ids < vocab_size)
    columns, order = torch.where(exists, ids, ABSENT).to(torch.int32).sort(dim=-1, stable=True)
    log_p = torch.where(exists, log_p, -torch.inf).gather(1, order)
    repeated = torch.zeros_like(exists)
    repeated[:, 1:] = columns[:, 1:] == columns[:, :-1]
    log_p = torch.where(repeated, -torch.inf, log_p)
    mass = torch.pow(math.e, log_p).sum(-1)  # `exp` and `log` wake threads for few elements, `pow` and `log1p` do not
    if tail == "bucket":
        return columns, log_p, torch.log1p(-mass.clamp(max=1))
    log_p = torch.where(mass[:, None] == 0, -torch.inf, log_p - mass.log()[:, None])
    return columns, log_p, torch.where(mass == 0, 0.0, torch.where(mass.isnan(), mass, -torch.inf))


def row_labels(target_ids: Tensor, vocab_size: int, shift: bool) -> Tensor:
    """(N,) int32 from `target_ids` (...,): -1 for those outside [0, vocab_size). With `shift` row t takes that of t + 1."""
    ids = target_ids.to(torch.int64)
    labels = torch.where((ids >= 0) & (ids < vocab_size), ids, -1).to(torch.int32)
    if shift:
        labels = torch.nn.functional.pad(labels[..., 1:], (0, 1), value=-1)
    return labels.reshape(-1).contiguous()


class TopkValues(NamedTuple):
    """What one pass over N rows found; 0 on rows that were not read.

    `value` (N,). `state` (2, N), what `backward` needs: the log-sum-exps of the student's z / T over all columns and over
    those that are neither listed nor the label. With statistics, the student's `entropy` (N,) in nats and `argmax` (N,).
    """

    value: Tensor
    state: Tensor
    entropy: Tensor | None = None
    argmax: Tensor | None = None
