"""How a kernel compares a row of student logits with a row of teacher logits, and what it says about each row."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")


class DivergenceConfig(NamedTuple):
    """What the distributions are and how far apart they count.

    A logit x becomes z = cap tanh(scale x / cap), or z = scale x without a cap; p = softmax(z_teacher / T) and
    q = softmax(z_student / T) over the first `vocab_size` columns. The divergences, with m = beta p + (1 - beta) q:

        forward_kl  KL(p || q)
        reverse_kl  KL(q || p)
        jsd         beta KL(p || m) + (1 - beta) KL(q || m)
    """

    vocab_size: int
    temperature: float = 1.0
    divergence: str = "forward_kl"
    beta: float = 0.5
    student_scale: float = 1.0
    teacher_scale: float = 1.0
    student_softcap: float | None = None
    teacher_softcap: float | None = None


class RowValues(NamedTuple):
    """What one pass over N rows found; 0 on rows that were not read.

    `value` (N,), the divergence. `state` (3, N), what `backward` needs: the log-sum-exps of z / T of student and teacher,
    and E_q[G] of reverse_kl and jsd, whose gradient is q (G - E_q[G]) / T; None where nobody asked. With statistics,
    `entropies` (2, N) of teacher and student in nats and `argmax` (2, N) integers, the lowest column of the largest
    logit of student and teacher.
    """

    value: Tensor
    state: Tensor | None
    entropies: Tensor | None = None
    argmax: Tensor | None = None
