"""The divergence between a row of student logits and a row of teacher logits: its options and the results per row."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")


class DivergenceConfig(NamedTuple):
    """The two distributions of a row and the divergence between them.

    A logit x becomes z = cap tanh(scale x / cap), or z = scale x without a cap. The distributions are
    p = softmax(z_teacher / T) and q = softmax(z_student / T) over the first `vocab_size` columns. The divergences, with
    m = beta p + (1 - beta) q, are

        forward_kl  KL(p || q)
        reverse_kl  KL(q || p)
        jsd         beta KL(p || m) + (1 - beta) KL(q || m)

    The kernels compute z / T - lse as factor (y - origin) - log_sum. y is the logit x or, with a cap, tanh(scale x / cap);
    the origin is any float32, by default the largest y of the row. So a large number that all logits have in common, or a
    large logit, costs no digits. The log-sum-exp is log_sum + factor origin.
    """

    vocab_size: int
    temperature: float = 1.0
    divergence: str = "forward_kl"
    beta: float = 0.5
    student_scale: float = 1.0
    teacher_scale: float = 1.0
    student_softcap: float | None = None
    teacher_softcap: float | None = None

    @property
    def factors(self) -> tuple[float, float]:
        """The factor of student and teacher: z / T = factor y."""
        student, teacher = self.student_softcap or self.student_scale, self.teacher_softcap or self.teacher_scale
        return student / self.temperature, teacher / self.temperature


class RowValues(NamedTuple):
    """The results of one pass over N rows; 0 on rows that are not read.

    Attributes:
        value: (N,), the divergence in nats.
        state: (5, N), the input of `backward`: the log-sums of student and teacher, E_q[dD/dlog q] of reverse_kl and jsd,
            whose gradient is q (dD/dlog q - E_q[dD/dlog q]) / T, and the origins of student and teacher. The sum of a row
            without a finite logit has the origin 0. None if not requested.
        entropies: (2, N), of teacher and student in nats. None without statistics.
        argmax: (2, N) integers, the lowest column of the largest logit of student and teacher. None without statistics.
    """

    value: Tensor
    state: Tensor | None
    entropies: Tensor | None = None
    argmax: Tensor | None = None

    def as_row_values(self, target: Any) -> RowValues:
        """These values; `sadkernels.topk.TopkValues` has the same method."""
        return self
