"""The span divergences from hidden states: the inputs of their ops, and the teacher's logits a chunk at a time."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from torch import Tensor

from sadkernels.divergence import RowValues
from sadkernels.ops.linear_chunks import Head
from sadkernels.ops.linear_library import LinearLoss, register
from sadkernels.ops.options import OPTIONS_SCHEMA, Options, kernel_for, loss_dtype

NAME = "linear_span_kl"


class Inputs(NamedTuple):
    """The tensors that every op takes first, in this order."""

    student_hidden: Tensor  # (..., H_s)
    student_weight: Tensor  # (V_s, H_s)
    student_bias: Tensor | None
    teacher_hidden: Tensor  # (..., H_t)
    teacher_weight: Tensor
    teacher_bias: Tensor | None
    span_ids: Tensor
    normalizer: Tensor | None
    rows: Tensor | None  # (M,) the supervised ones, where the caller knows


class _Teacher:
    """A `linear_chunks.Target`: the teacher's logits, projected like the student's."""

    state_rows = 3

    def __init__(self, kernel: ModuleType, head: Head) -> None:
        self.kernel, self._head = kernel, head
        self.row_bytes = head.weight.shape[0] * head.hidden.element_size()
        self._room: Tensor | None = None

    def of_rows(self, rows: Tensor, place: slice) -> Tensor:
        if self._room is None:  # no chunk is larger than the first
            self._room = self.kernel.new_logits((len(rows), self._head.weight.shape[0]), self._head.hidden)
        logits = self._room[: len(rows)]
        self._head.project(self._head.hidden.index_select(0, rows), logits)
        return logits

    def row_values(self, found: RowValues, target: Tensor) -> RowValues:
        return found


def _target(x: Inputs, o: Options, rows: Tensor) -> _Teacher:
    kernel = kernel_for(o.backend, o.vocab_size, x.student_hidden, x.teacher_hidden)
    head = Head(x.teacher_hidden.flatten(0, -2), x.teacher_weight, x.teacher_bias)
    return _Teacher(kernel, head.columns(o.vocab_size))


register(
    LinearLoss(
        name=NAME,
        inputs=Inputs,
        inputs_schema=(
            "Tensor student_hidden, Tensor student_weight, Tensor? student_bias, Tensor teacher_hidden, "
            "Tensor teacher_weight, Tensor? teacher_bias, Tensor span_ids, Tensor? normalizer, Tensor? rows"
        ),
        options=Options,
        options_schema=OPTIONS_SCHEMA,
        dtype=lambda x: loss_dtype(x.student_hidden, x.teacher_hidden),
        state_rows=_Teacher.state_rows,
        target=_target,
    )
)
