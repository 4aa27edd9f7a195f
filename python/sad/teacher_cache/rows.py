"""What a cache knows of the teacher at one position: the likeliest tokens, what is left, and the whole entropy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class TeacherRows(NamedTuple):
    """R rows of the teacher's softmax at temperature 1.

    `ids` (R, k) int32, the likeliest columns in ascending order; `logprobs` (R, k) float32, theirs; `rest` (R,) float32, the
    probability of all other columns; `entropy` (R,) float32, of the whole softmax, nats; `argmax` (R,) int32, the likeliest
    column, the lowest of equals.
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    rest: NDArray[np.float32]
    entropy: NDArray[np.float32]
    argmax: NDArray[np.int32]

    def part(self, rows: slice) -> TeacherRows:
        """Some of them."""
        return TeacherRows(*(x[rows] for x in self))


def concatenate(parts: list[TeacherRows]) -> TeacherRows:
    """One after the other."""
    return TeacherRows(*map(np.concatenate, zip(*parts)))


def no_rows(top_k: int) -> TeacherRows:
    """R = 0."""
    lists = (np.zeros((0, top_k), dtype) for dtype in (np.int32, np.float32))
    return TeacherRows(*lists, *(np.zeros(0, dtype) for dtype in (np.float32, np.float32, np.int32)))


def rows_of_logits(logits: Tensor, top_k: int) -> TeacherRows:
    """Reads R rows of logits.

    Args:
        logits: (R, V), of any floating-point dtype, on any device.
        top_k: k <= V.

    Returns:
        Rows in the CPU's memory. Where logits are NaN or +inf, the entropy is NaN.
    """
    logits = logits.float()
    ids = logits.topk(top_k, dim=-1, sorted=False).indices.sort(dim=-1).values
    argmax = logits.argmax(-1)
    z = logits - logits.amax(-1, keepdim=True)
    p = z.exp()
    total = p.sum(-1)  # a sum in pairs; that inside of `log_softmax` on a CPU is off by 1e-4 at V = 50,000
    listed = z.gather(1, ids) - total.log()[:, None]
    of_z = z.clamp_(min=torch.finfo(z.dtype).min).mul_(p).sum(-1)  # 0 where p is 0, not 0 x inf
    entropy = total.log() - of_z / total
    rest = p.scatter_(1, ids, 0.0).sum(-1) / total  # a sum of what is left: 1 - sum of the listed has no digits of 1e-8
    parts = (ids.int(), listed, rest, entropy, argmax.int())
    return TeacherRows(*(x.cpu().numpy() for x in parts))


def tail_spread(rows: TeacherRows, vocab_size: int) -> NDArray[np.float64]:
    """(R,) what the list does not show of each row, nats.

    A student is compared with k listed tokens and the probability of all others together. The KL to the whole teacher is
    more by rest * KL(teacher's tail || student's tail); this is that for a student to whom all tokens of the tail are alike.
    """
    unlisted = vocab_size - rows.ids.shape[1]
    if unlisted == 0:
        return np.zeros(len(rows.rest))
    log_p, rest = rows.logprobs.astype(np.float64), rows.rest.astype(np.float64)
    of_listed = np.where(log_p == -np.inf, 0.0, np.exp(log_p) * np.where(log_p == -np.inf, 0.0, log_p)).sum(1)
    of_tail = -rows.entropy.astype(np.float64) - of_listed  # sum of p log p over the tail
    uniform = rest * np.log(np.maximum(rest, np.finfo(np.float64).tiny) / unlisted)
    return np.maximum(of_tail - uniform, 0.0)
