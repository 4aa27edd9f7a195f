"""What the ops of the span divergences have in common: their options, and the way from rows to loss and statistics."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels import backends
from sadkernels.divergence import DivergenceConfig, RowValues
from sadkernels.kinds import SpanKind
from sadkernels.ops.row_weights import RowWeights, row_weights


class Options(NamedTuple):
    """What every op below takes after its tensors, in this order; the fields of `DivergenceConfig` last."""

    lambda_reason: float
    lambda_act: float
    reduction: str
    shift: bool
    stats: bool
    backend: str
    group: str  # the name of the process group that shares the vocabulary; empty: nobody does
    vocab_size: int
    temperature: float = 1.0
    divergence: str = "forward_kl"
    beta: float = 0.5
    student_scale: float = 1.0
    teacher_scale: float = 1.0
    student_softcap: float | None = None
    teacher_softcap: float | None = None

    @property
    def comparison(self) -> DivergenceConfig:
        """What the kernels need to know."""
        return DivergenceConfig(*self[-len(DivergenceConfig._fields) :])


OPTIONS_SCHEMA = (
    "float lambda_reason, float lambda_act, str reduction, bool shift, bool stats, str backend, str group, "
    "SymInt vocab_size, float temperature, str divergence, float beta, float student_scale, float teacher_scale, "
    "float? student_softcap, float? teacher_softcap"
)


def loss_dtype(student: Tensor, teacher: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32


def weigh_rows(student: Tensor, teacher: Tensor, span_ids: Tensor, normalizer: Tensor | None, o: Options) -> RowWeights:
    lambdas = (o.lambda_reason, o.lambda_act)
    return row_weights(span_ids, normalizer, lambdas, o.reduction, o.shift, loss_dtype(student, teacher))


def kernel_for(backend: str, columns: int, *logits: Tensor) -> ModuleType:
    """The backend's module for rows of so many columns. Chosen inside the ops, where torch.compile does not look."""
    name = backends.resolve(backend, "span_kl", logits[0].device, *(x.dtype for x in logits), columns=columns)
    return backends.implementation(name, "span_kl")


def kinds_to_read(rows: RowWeights, o: Options) -> Tensor:
    """The kinds of the rows that must be read: one whose lambda is 0 counts, but only statistics look at it."""
    return rows.kinds if o.stats or o.reduction == "none" else rows.kinds * (rows.weights != 0)


def reduce_values(value: Tensor, rows: RowWeights, shape: torch.Size, o: Options) -> Tensor:
    if o.reduction == "none":
        return value.view(shape)
    return torch.where(rows.weights != 0, rows.weights * value, 0).sum()


def sums_by_kind(values: RowValues, rows: RowWeights) -> Tensor:
    """(2, 4): sums of divergence, teacher entropy, student entropy and agreements over reason and act rows."""
    if values.entropies is None:
        return values.value.new_empty((0, 4))
    agree = values.argmax[0] == values.argmax[1]
    by_row = torch.cat([values.value[None], values.entropies, agree[None]])
    kinds = (SpanKind.REASON, SpanKind.ACT)
    return torch.stack([torch.where(rows.kinds == kind, by_row, 0).sum(-1) for kind in kinds])


def fake_results(student: Tensor, teacher: Tensor, span_ids: Tensor, o: Options) -> tuple[Tensor, Tensor, Tensor]:
    return fake_results_in(loss_dtype(student, teacher), span_ids, o)


def fake_results_in(dtype: torch.dtype, span_ids: Tensor, o: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, sums and counts as fakes have them, for a loss of `dtype`."""
    loss = span_ids.new_empty(span_ids.shape if o.reduction == "none" else (), dtype=dtype)
    sums = span_ids.new_empty((2 if o.stats else 0, 4), dtype=dtype)
    return loss, sums, span_ids.new_empty((2,), dtype=torch.int64)


def graph_is_kept() -> bool:
    """Whether this backward was started with `retain_graph=True`; assumed so where PyTorch cannot tell."""
    if torch.compiler.is_compiling():
        return False
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return ask is None or ask()
