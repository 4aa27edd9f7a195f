"""The teacher side of a row as k columns with their log-probabilities, the tail of all other columns, and a label.

A `TopkTarget` is built by PyTorch from k numbers per row, once for all backends, in float64: the tail's probability is
1 - sum_i p_i, and float32 would lose a tail of 1e-8.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels.divergence import RowValues

TAILS = ("bucket", "ignore")
ABSENT = 2**31 - 1  # the column of an entry that does not exist; it sorts behind all columns
_SERIAL = 1 << 14  # elements per CPU op: fewer than PyTorch needs to start threads, which is slow on a busy CPU


class TopkTarget(NamedTuple):
    """The targets of N rows. The loss of a row is alpha KL(p || q) + (1 - alpha) (-log q[label]).

    The KL has k + 1 outcomes: the k columns and the tail. Rows without a span may hold anything.

    Attributes:
        columns: (N, k) int32, ascending, then ABSENT. If a column is repeated, its first entry counts.
        log_p: (N, k), the log-probabilities of the columns.
        log_tail: (N,), the log-probability of all other columns together.
        labels: (N,) int32, -1 for a row without a label. None if no row has one.
        alpha: The share of the KL.
    """

    columns: Tensor
    log_p: Tensor
    log_tail: Tensor
    labels: Tensor | None
    alpha: float

    def valid(self) -> Tensor:
        """(N, k) bool: whether an entry is a column and not a repetition."""
        first = torch.ones_like(self.columns, dtype=torch.bool)
        first[:, 1:] = self.columns[:, 1:] != self.columns[:, :-1]
        return first & (self.columns != ABSENT)

    def entropy(self) -> Tensor:
        """(N,), the entropy of the k + 1 outcomes in nats; 0 if k is 0."""
        if self.columns.shape[1] == 0:
            return torch.zeros_like(self.log_tail)
        log_p = torch.cat([torch.where(self.valid(), self.log_p, -torch.inf), self.log_tail[:, None]], dim=1)
        return -torch.where(log_p == -torch.inf, 0, log_p.exp() * log_p).sum(-1)

    def best(self) -> Tensor:
        """(N,) int32: the column of the largest log-probability (ties: the lowest); the label if k is 0."""
        if self.columns.shape[1] == 0:
            return self.labels
        return self.columns.gather(1, self.log_p.argmax(-1, keepdim=True))[:, 0]


class TopkValues(NamedTuple):
    """The results of one pass over N rows; 0 on rows that are not read.

    Attributes:
        value: (N,), the loss in nats.
        state: (4, N), the input of `backward`: the log-sums of the student's z / T over all columns, and over the columns
            that are neither among the k nor the label; then the origins of both, as in `DivergenceConfig`.
        entropy: (N,), of the student in nats. None without statistics.
        argmax: (N,) integers, the student's. None without statistics.
    """

    value: Tensor
    state: Tensor
    entropy: Tensor | None = None
    argmax: Tensor | None = None

    def as_row_values(self, target: TopkTarget) -> RowValues:
        """The values together with the teacher's entropy and best column, in the form that all losses share."""
        if self.entropy is None:
            return RowValues(self.value, self.state)
        entropies = torch.stack([target.entropy(), self.entropy])
        return RowValues(self.value, self.state, entropies, torch.stack([self.argmax.int(), target.best()]))


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
    """Builds the targets of N rows from their columns, their labels, or both.

    Args:
        logprobs: (..., k), or None for labels alone.
        ids: (..., k) integers. An id outside [0, vocab_size) is absent, whatever its log-probability is.
        labels: (N,), from `row_labels`, or None.
        vocab_size: The number of columns of the student's softmax.
        tail: "bucket": the tail has the remaining probability. "ignore": the k columns are renormalized and the tail has
            probability 0. A row without columns has a tail of 1, and so a KL of 0.
        alpha: The share of the KL.
        dtype: The dtype of the resulting log-probabilities.
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
    mass = torch.pow(math.e, log_p).sum(-1)  # for few elements `exp` and `log` start threads, `pow` and `log1p` do not
    if tail == "bucket":
        return columns, log_p, torch.log1p(-mass.clamp(max=1))
    log_p = torch.where(mass[:, None] == 0, -torch.inf, log_p - mass.log()[:, None])
    return columns, log_p, torch.where(mass == 0, 0.0, torch.where(mass.isnan(), mass, -torch.inf))


def row_labels(target_ids: Tensor, vocab_size: int, shift: bool) -> Tensor:
    """(N,) int32 from `target_ids` (...,): -1 for ids outside [0, vocab_size). With `shift` row t has the label of t + 1."""
    ids = target_ids.to(torch.int64)
    labels = torch.where((ids >= 0) & (ids < vocab_size), ids, -1).to(torch.int32)
    if shift:  # the last slice keeps rows of 0 tokens empty
        labels = torch.nn.functional.pad(labels[..., 1:], (0, 1), value=-1)[..., : labels.shape[-1]]
    return labels.reshape(-1).contiguous()
