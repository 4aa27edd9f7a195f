"""Launcher of `csrc/cuda/span_kl.cu`. `sadkernels.reference.span_kl` defines every function here."""

from __future__ import annotations

import torch
from torch import Tensor

from sadkernels.comparison import Comparison, RowValues
from sadkernels.native import params
from sadkernels.native.cuda.device import placement
from sadkernels.native.extension import load


def new_gradient(student: Tensor) -> Tensor:
    """Memory for a gradient: shape, dtype and device of `student`, contiguous, contents arbitrary."""
    return student.new_empty(student.shape)


def log_sum_exps(student: Tensor, teacher: Tensor, kinds: Tensor, how: Comparison) -> Tensor:
    """See `sadkernels.reference.span_kl.log_sum_exps`."""
    lse = torch.empty((2, kinds.numel()), device=student.device)
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
    """`forward` without the state, and `backward`, in one launch."""
    values = params.new_values(kinds, stats=stats, state=False)
    _run(student, teacher, kinds, how, grad, weights=weights.contiguous(), **values._asdict())
    return values


def scale(grad: Tensor, kinds: Tensor, factor: Tensor) -> None:
    """Multiplies the supervised rows of `grad` (..., V) by the 0-dim `factor`, which never leaves the device."""
    factor = factor.to(torch.float32)
    load("cuda").scale_rows(
        rows=kinds.numel(),
        columns=grad.shape[-1],
        grad=params.rows(grad),
        kinds=kinds.data_ptr(),
        factor=factor.data_ptr(),
        **placement(grad.device),
    )


def _run(
    student: Tensor, teacher: Tensor, kinds: Tensor, how: Comparison, grad: Tensor | None = None, **vectors: Tensor | None
) -> None:
    extension, where = load("cuda"), placement(student.device)
    arguments = params.span_kl_params(student, teacher, kinds, how, grad, **vectors)
    size = extension.span_kl_scratch_bytes(**arguments, device=where["device"])
    # PyTorch's allocator gives it to the next user of this stream, who runs after the kernel: nothing need be kept.
    scratch = torch.empty(size, dtype=torch.uint8, device=student.device)
    extension.span_kl(**arguments, scratch=scratch.data_ptr(), **where)
