"""Launcher of the compiled span KL: the functions of `sadkernels.reference.span_kl`, from tensors to pointers."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from sadkernels.native.extension import load
from sadkernels.rows import row_layout

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_HUGE_PAGES_FROM = 8 << 20  # bytes; below, a fresh buffer spans too few huge pages to matter
_NO_ROWS = (0, 0, 1, 0, 0)


def _rows(x: Tensor) -> tuple[int, int, int, int, int]:
    layout = row_layout(x)
    return (x.data_ptr(), _DTYPES[x.dtype], *layout)


def _isa() -> str:
    """The instruction set to use; empty for the best this processor has."""
    return os.environ.get("SAD_CPU_ISA", "")


def _call(student, teacher, kinds, *, vocab_size, temperature, grad=None, weights=None, lse_given=None, outputs=(None,) * 3):
    extension = load("cpu")
    if grad is not None and grad.data_ptr() != student.data_ptr():
        size = grad.numel() * grad.element_size()
        if size >= _HUGE_PAGES_FROM:
            extension.advise_huge_pages(grad.data_ptr(), size)
    kl, lse, extras = (0 if x is None else x.data_ptr() for x in outputs)
    extension.span_kl(
        rows=kinds.numel(),
        vocab=vocab_size,
        student_columns=student.shape[-1],
        student=_rows(student),
        teacher=_rows(teacher),
        grad=_NO_ROWS if grad is None else _rows(grad),
        kinds=kinds.data_ptr(),
        weights=0 if weights is None else weights.data_ptr(),
        lse_given=0 if lse_given is None else lse_given.data_ptr(),
        kl=kl,
        lse=lse,
        extras=extras,
        temperature=temperature,
        threads=torch.get_num_threads(),
        isa=_isa(),
    )


def _outputs(kinds: Tensor, stats: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    n = kinds.numel()
    kl, lse = (torch.empty(shape, dtype=torch.float32, device=kinds.device) for shape in ((n,), (2, n)))
    return kl, lse, torch.empty((3, n), dtype=torch.float32, device=kinds.device) if stats else None


def forward(student, teacher, kinds, *, vocab_size, temperature, stats):
    """See `sadkernels.reference.span_kl.forward`."""
    kl, lse, extras = outputs = _outputs(kinds, stats)
    _call(student, teacher, kinds, vocab_size=vocab_size, temperature=temperature, outputs=outputs)
    return kl, lse, kl.new_empty((3, 0)) if extras is None else extras


def backward(student, teacher, kinds, lse, weights, *, vocab_size, temperature, grad):
    """See `sadkernels.reference.span_kl.backward`."""
    options = {"vocab_size": vocab_size, "temperature": temperature}
    _call(student, teacher, kinds, grad=grad, weights=weights.contiguous(), lse_given=lse.contiguous(), **options)


def forward_backward(student, teacher, kinds, weights, *, vocab_size, temperature, stats, grad):
    """See `sadkernels.reference.span_kl.forward_backward`."""
    kl, _, extras = outputs = _outputs(kinds, stats)
    options = {"vocab_size": vocab_size, "temperature": temperature}
    _call(student, teacher, kinds, grad=grad, weights=weights.contiguous(), outputs=outputs, **options)
    return kl, kl.new_empty((3, 0)) if extras is None else extras


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
