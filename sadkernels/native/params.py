"""Tensors as the parameter structs of the extensions; the Python side of `csrc/params.h`."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sadkernels.divergence import DIVERGENCES, DivergenceConfig
from sadkernels.row_layout import row_layout
from sadkernels.topk import TopkTarget

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_DIVERGENCES = {name: number for number, name in enumerate(DIVERGENCES)}
_NO_ROWS = (0, 0, 1, 0, 0)


def rows(x: Tensor) -> tuple[int, int, int, int, int]:
    """Returns a (..., V) tensor as the `Rows` of an extension: address, dtype and `RowLayout`."""
    return (x.data_ptr(), _DTYPES[x.dtype], *row_layout(x))


def _addresses(tensors: dict[str, Tensor | None]) -> dict[str, int]:
    """Returns the addresses by name. A parameter that is left out is a null pointer."""
    return {name: x.data_ptr() for name, x in tensors.items() if x is not None}


def span_kl_params(
    extension: ModuleType,
    student: Tensor,
    teacher: Tensor,
    kinds: Tensor,
    config: DivergenceConfig,
    grad: Tensor | None,
    vectors: dict[str, Tensor | None],
) -> Any:
    """Returns `SpanKlParams`. All tensors must outlive the kernel's launch.

    Args:
        extension: The extension that defines the struct.
        student: (..., V_s) logits of N rows.
        teacher: (..., V_t) logits.
        kinds: (N,) uint8.
        config: The divergence and its options.
        grad: (..., V_s), or None for no gradient.
        vectors: The contiguous inputs and outputs with one entry per row, by field name; None or absent for a null pointer.
    """
    return extension.SpanKlParams(
        rows=kinds.numel(),
        vocab=config.vocab_size,
        student_columns=student.shape[-1],
        student=(rows(student), config.student_scale, config.student_softcap or 0.0),
        teacher=(rows(teacher), config.teacher_scale, config.teacher_softcap or 0.0),
        grad=_NO_ROWS if grad is None else rows(grad),
        divergence=_DIVERGENCES[config.divergence],
        beta=config.beta,
        temperature=config.temperature,
        kinds=kinds.data_ptr(),
        **_addresses(vectors),
    )


def topk_span_kl_params(
    extension: ModuleType,
    student: Tensor,
    target: TopkTarget,
    kinds: Tensor,
    config: DivergenceConfig,
    grad: Tensor | None,
    vectors: dict[str, Tensor | None],
) -> Any:
    """Returns `TopkSpanKlParams`. All tensors must outlive the kernel's launch; the arguments are as in `span_kl_params`."""
    columns, log_p, log_tail, labels, alpha = target
    return extension.TopkSpanKlParams(
        base=span_kl_params(extension, student, student, kinds, config, grad, vectors),  # the teacher is not read
        k=columns.shape[1],
        columns=columns.data_ptr(),
        log_p=log_p.data_ptr(),
        log_tail=log_tail.data_ptr(),
        labels=0 if labels is None else labels.data_ptr(),
        alpha=alpha,
    )


def span_ids_params(extension: ModuleType, offsets: Tensor, tensors: dict[str, Tensor]) -> Any:
    """Returns `SpanIdsParams`. All tensors must be contiguous and outlive the kernel's launch.

    Args:
        extension: The extension that defines the struct.
        offsets: (B, T, 2) int64.
        tensors: The other inputs and the outputs, by field name.
    """
    batch, tokens, _ = offsets.shape
    return extension.SpanIdsParams(batch=batch, tokens=tokens, offsets=offsets.data_ptr(), **_addresses(tensors))
