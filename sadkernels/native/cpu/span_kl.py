"""Launcher of `csrc/cpu/span_kl.cpp`. `sadkernels.reference.span_kl` defines every function here."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from sadkernels.comparison import Comparison, RowValues
from sadkernels.native import params
from sadkernels.native.extension import load

_KEEP_FROM = 1 << 20  # bytes of a gradient


def new_gradient(student: Tensor) -> Tensor:
    """Memory for a gradient; large ones lie in memory that is kept between calls."""
    if student.nbytes < _KEEP_FROM:
        return student.new_empty(student.shape)
    memory = load("cpu").Buffer(bytes=student.nbytes)  # lives as long as the tensor's storage
    grad = torch.frombuffer(memory, dtype=student.dtype).view(student.shape)
    if torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory:
        grad.fill_(torch.nan)  # as PyTorch does with its own
    return grad


def log_sum_exps(student: Tensor, teacher: Tensor, kinds: Tensor, how: Comparison) -> Tensor:
    """See `sadkernels.reference.span_kl.log_sum_exps`."""
    lse = torch.empty(2, kinds.numel())
    _run(student, teacher, kinds, how, state=lse)
    return lse


def forward(
    student: Tensor, teacher: Tensor, kinds: Tensor, how: Comparison, *, stats: bool, lse: Tensor | None = None
) -> RowValues:
    """See `sadkernels.reference.span_kl.forward`."""
    values = params.new_values(kinds, stats=stats, state=True)
    lse = None if lse is None else lse.contiguous()
    _run(student, teacher, kinds, how, lse_given=lse, **values._asdict())
    return values


def backward(
    student: Tensor, teacher: Tensor, kinds: Tensor, state: Tensor, weights: Tensor, how: Comparison, *, grad: Tensor
) -> None:
    """See `sadkernels.reference.span_kl.backward`."""
    _run(student, teacher, kinds, how, grad, state_given=state.contiguous(), weights=weights.contiguous())


def forward_backward(
    student: Tensor, teacher: Tensor, kinds: Tensor, weights: Tensor, how: Comparison, *, stats: bool, grad: Tensor
) -> RowValues:
    """See `sadkernels.reference.span_kl.forward_backward`."""
    values = params.new_values(kinds, stats=stats, state=True)
    _run(student, teacher, kinds, how, grad, weights=weights.contiguous(), **values._asdict())
    return values


def scale(grad: Tensor, kinds: Tensor, factor: Tensor) -> None:
    """See `sadkernels.reference.span_kl.scale`."""
    value = float(factor)  # on the CPU, reading a tensor waits for nothing
    if value != 1.0:
        load("cpu").scale_rows(
            rows=kinds.numel(),
            columns=grad.shape[-1],
            grad=params.rows(grad),
            kinds=kinds.data_ptr(),
            factor=value,
            **where(),
        )


def _run(
    student: Tensor, teacher: Tensor, kinds: Tensor, how: Comparison, grad: Tensor | None = None, **vectors: Tensor | None
) -> None:
    arguments = params.span_kl_params(student, teacher, kinds, how, grad, **vectors)
    load("cpu").span_kl(**arguments, **where())


def where() -> dict[str, object]:
    """Threads as PyTorch's now; the instruction set, empty for the best that this processor has."""
    return {"threads": torch.get_num_threads(), "isa": os.environ.get("SAD_CPU_ISA", "")}
