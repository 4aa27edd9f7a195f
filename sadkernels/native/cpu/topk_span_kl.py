"""Launcher of `csrc/cpu/topk_span_kl.cpp`. `sadkernels.reference.topk_span_kl` defines every function here."""

from __future__ import annotations

from torch import Tensor

from sadkernels.comparison import Comparison
from sadkernels.listed import ListedTarget, ListedValues
from sadkernels.native import params
from sadkernels.native.cpu.span_kl import new_gradient, where
from sadkernels.native.extension import load

__all__ = ["backward", "forward", "forward_backward", "new_gradient"]


def forward(student: Tensor, target: ListedTarget, kinds: Tensor, how: Comparison, *, stats: bool) -> ListedValues:
    """See `sadkernels.reference.topk_span_kl.forward`."""
    return _values(student, target, kinds, how, stats)


def backward(
    student: Tensor, target: ListedTarget, kinds: Tensor, state: Tensor, weights: Tensor, how: Comparison, *, grad: Tensor
) -> None:
    """See `sadkernels.reference.topk_span_kl.backward`."""
    _run(student, target, kinds, how, grad, state_given=state.contiguous(), weights=weights.contiguous())


def forward_backward(
    student: Tensor, target: ListedTarget, kinds: Tensor, weights: Tensor, how: Comparison, *, stats: bool, grad: Tensor
) -> ListedValues:
    """See `sadkernels.reference.topk_span_kl.forward_backward`."""
    return _values(student, target, kinds, how, stats, grad, weights=weights.contiguous())


def _values(
    student: Tensor, target: ListedTarget, kinds: Tensor, how: Comparison, stats: bool, grad: Tensor | None = None, **given
) -> ListedValues:
    values = params.new_listed_values(kinds, stats=stats)
    outputs = {"value": values.value, "state": values.state, "entropies": values.entropy, "argmax": values.argmax}
    _run(student, target, kinds, how, grad, **given, **outputs)
    return values


def _run(
    student: Tensor, target: ListedTarget, kinds: Tensor, how: Comparison, grad: Tensor | None, **vectors: Tensor | None
) -> None:
    arguments = params.span_kl_params(student, student, kinds, how, grad, **vectors)  # no teacher's rows to point at
    load("cpu").topk_span_kl(**arguments, **params.listed_params(target), **where())
