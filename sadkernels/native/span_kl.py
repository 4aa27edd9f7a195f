"""Launcher of the compiled span divergences: the functions of `sadkernels.reference.span_kl`, from tensors to pointers."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from sadkernels.comparison import DIVERGENCES, Comparison, RowValues
from sadkernels.native.extension import load
from sadkernels.rows import row_layout

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_KEEP_FROM = 1 << 20  # bytes of a gradient
_NO_ROWS = (0, 0, 1, 0, 0)


def _rows(x: Tensor) -> tuple[int, int, int, int, int]:
    layout = row_layout(x)
    return (x.data_ptr(), _DTYPES[x.dtype], *layout)


def _isa() -> str:
    """The instruction set to use; empty for the best this processor has."""
    return os.environ.get("SAD_CPU_ISA", "")


def _call(
    student: Tensor, teacher: Tensor, kinds: Tensor, how: Comparison, grad: Tensor | None = None, **vectors: Tensor | None
) -> None:
    """One call of the kernel; `vectors` are its per-row inputs and outputs by name, None or left out where not wanted."""
    extension = load("cpu")
    names = ("weights", "lse_given", "state_given", "value", "state", "entropies", "argmax")
    given: dict[str, Any] = {name: vectors.get(name) for name in names}
    extension.span_kl(
        rows=kinds.numel(),
        vocab=how.vocab_size,
        student_columns=student.shape[-1],
        student=_rows(student),
        teacher=_rows(teacher),
        grad=_NO_ROWS if grad is None else _rows(grad),
        scales=(how.student_scale, how.teacher_scale),
        caps=(how.student_softcap or 0.0, how.teacher_softcap or 0.0),
        divergence=DIVERGENCES.index(how.divergence),
        beta=how.beta,
        temperature=how.temperature,
        kinds=kinds.data_ptr(),
        threads=torch.get_num_threads(),
        isa=_isa(),
        **{name: 0 if x is None else x.data_ptr() for name, x in given.items()},
    )


def _values(kinds: Tensor, stats: bool) -> RowValues:
    n = kinds.numel()
    value, state = torch.empty(n), torch.empty(3, n)
    return RowValues(value, state, *((torch.empty(2, n), torch.empty(2, n, dtype=torch.int32)) if stats else (None, None)))


def new_gradient(student):
    """See `sadkernels.reference.span_kl.new_gradient`; large ones lie in memory that is kept between calls."""
    if student.nbytes < _KEEP_FROM:
        return student.new_empty(student.shape)
    memory = load("cpu").Buffer(bytes=student.nbytes)  # lives as long as the tensor's storage
    grad = torch.frombuffer(memory, dtype=student.dtype).view(student.shape)
    if torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory:
        grad.fill_(torch.nan)  # as PyTorch does with its own
    return grad


def log_sum_exps(student, teacher, kinds, how):
    """See `sadkernels.reference.span_kl.log_sum_exps`."""
    lse = torch.empty(2, kinds.numel())
    _call(student, teacher, kinds, how, state=lse)
    return lse


def forward(student, teacher, kinds, how, *, stats, lse=None):
    """See `sadkernels.reference.span_kl.forward`."""
    values = _values(kinds, stats)
    lse = lse if lse is None else lse.contiguous()
    _call(student, teacher, kinds, how, lse_given=lse, **values._asdict())
    return values


def backward(student, teacher, kinds, state, weights, how, *, grad):
    """See `sadkernels.reference.span_kl.backward`."""
    _call(student, teacher, kinds, how, grad, state_given=state.contiguous(), weights=weights.contiguous())


def forward_backward(student, teacher, kinds, weights, how, *, stats, grad):
    """See `sadkernels.reference.span_kl.forward_backward`."""
    values = _values(kinds, stats)
    _call(student, teacher, kinds, how, grad, weights=weights.contiguous(), **values._asdict())
    return values


def scale(grad, kinds, factor):
    """See `sadkernels.reference.span_kl.scale`."""
    value = float(factor)  # on the CPU, reading a tensor waits for nothing
    if value != 1.0:
        load("cpu").scale_rows(
            rows=kinds.numel(),
            columns=grad.shape[-1],
            grad=_rows(grad),
            kinds=kinds.data_ptr(),
            factor=value,
            threads=torch.get_num_threads(),
            isa=_isa(),
        )
