"""What the span divergences are called with on every compiled backend; the Python side of `csrc/span_kl_binding.h`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sadkernels.divergence import DIVERGENCES, DivergenceConfig, RowValues
from sadkernels.row_layout import row_layout
from sadkernels.topk import TopkTarget, TopkValues

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_NO_ROWS = (0, 0, 1, 0, 0)
_VECTORS = ("weights", "lse_given", "state_given", "value", "state", "entropies", "argmax")


def rows(x: Tensor) -> tuple[int, int, int, int, int]:
    """A (..., V) tensor as the extensions take it: address, dtype and `RowLayout`."""
    return (x.data_ptr(), _DTYPES[x.dtype], *row_layout(x))


def address(x: Tensor | None) -> int:
    """Where `x` lies; 0, a null pointer, for None."""
    return 0 if x is None else x.data_ptr()


def span_kl_params(
    student: Tensor,
    teacher: Tensor,
    kinds: Tensor,
    config: DivergenceConfig,
    grad: Tensor | None = None,
    **vectors: Tensor | None,
) -> dict[str, Any]:
    """`SpanKlParams` by name; `vectors` are the contiguous per-row inputs and outputs, None or left out where not wanted."""
    return {
        "rows": kinds.numel(),
        "vocab": config.vocab_size,
        "student_columns": student.shape[-1],
        "student": rows(student),
        "teacher": rows(teacher),
        "grad": _NO_ROWS if grad is None else rows(grad),
        "scales": (config.student_scale, config.teacher_scale),
        "caps": (config.student_softcap or 0.0, config.teacher_softcap or 0.0),
        "divergence": DIVERGENCES.index(config.divergence),
        "beta": config.beta,
        "temperature": config.temperature,
        "kinds": kinds.data_ptr(),
        **{name: address(vectors.get(name)) for name in _VECTORS},
    }


def new_values(kinds: Tensor, *, stats: bool, state: bool) -> RowValues:
    """Memory for what a forward pass gives of N rows."""
    n, device = kinds.numel(), kinds.device
    return RowValues(
        torch.empty(n, device=device),
        torch.empty((3, n), device=device) if state else None,
        torch.empty((2, n), device=device) if stats else None,
        torch.empty((2, n), dtype=torch.int32, device=device) if stats else None,
    )


def topk_params(target: TopkTarget) -> dict[str, Any]:
    """What `TopkSpanKlParams` has beyond `SpanKlParams`, by name; `target` outlives the call."""
    return {
        "listed": target.columns.shape[1],
        "columns": target.columns.data_ptr(),
        "log_p": target.log_p.data_ptr(),
        "log_tail": target.log_tail.data_ptr(),
        "labels": address(target.labels),
        "alpha": target.alpha,
    }


def new_topk_values(kinds: Tensor, *, stats: bool) -> TopkValues:
    """Memory for what a forward pass against a `TopkTarget` gives of N rows."""
    n, device = kinds.numel(), kinds.device
    return TopkValues(
        torch.empty(n, device=device),
        torch.empty((2, n), device=device),
        torch.empty(n, device=device) if stats else None,
        torch.empty(n, dtype=torch.int32, device=device) if stats else None,
    )


class Labels(NamedTuple):
    """(B, T): `ids` uint8, or the two masks `m_r` and `m_a`, bool; None where not wanted."""

    ids: Tensor | None = None
    m_r: Tensor | None = None
    m_a: Tensor | None = None

    @classmethod
    def for_tokens(cls, offsets: Tensor, masks: bool) -> Labels:
        """Memory for the labels of tokens with `offsets` (B, T, 2)."""

        def empty(dtype: torch.dtype) -> Tensor:
            return torch.empty(offsets.shape[:-1], dtype=dtype, device=offsets.device)

        return cls(m_r=empty(torch.bool), m_a=empty(torch.bool)) if masks else cls(empty(torch.uint8))


def span_ids_params(
    offsets: Tensor, starts: Tensor, ends: Tensor, kinds: Tensor, row_splits: Tensor, labels: Labels
) -> dict[str, int]:
    """What `span_ids_from_offsets` takes by name; every tensor is contiguous and outlives the call."""
    inputs = {"offsets": offsets, "starts": starts, "ends": ends, "kinds": kinds, "row_splits": row_splits}
    addresses = {name: address(x) for name, x in (inputs | labels._asdict()).items()}
    return {"batch": offsets.shape[0], "tokens": offsets.shape[1], **addresses}
