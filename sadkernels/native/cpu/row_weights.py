"""Launcher of `csrc/cpu/row_weights.cpp`."""

from __future__ import annotations

import torch
from torch import Tensor

from sadkernels.native.extension import load


def row_weights(
    span_ids: Tensor,
    normalizer: Tensor | None,
    lambdas: tuple[float, float],
    reduction: str,
    shift: bool,
    read_all: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `sadkernels.reference.row_weights.row_weights`; takes CPU tensors and gives float32 weights."""
    extension, rows, span_ids = load("cpu"), span_ids.numel(), span_ids.contiguous()
    kinds, counts = torch.empty(rows, dtype=torch.uint8), torch.empty(2, dtype=torch.int64)
    weights, read = torch.empty(rows, dtype=dtype), kinds if read_all else torch.empty_like(kinds)
    if normalizer is not None:
        normalizer = normalizer.to(torch.float32).contiguous()
    lambda_reason, lambda_act = lambdas if reduction != "none" else (1.0, 1.0)
    params = extension.RowWeightsParams(
        rows=rows,
        tokens=span_ids.shape[-1] if shift else 1,
        ids=span_ids.data_ptr(),
        id_bytes=span_ids.element_size(),
        shift=shift,
        per_kind=reduction == "span_mean",
        divide=reduction in ("mean", "span_mean"),
        lambda_reason=lambda_reason,
        lambda_act=lambda_act,
        normalizer=0 if normalizer is None else normalizer.data_ptr(),
        kinds=kinds.data_ptr(),
        read=0 if read_all else read.data_ptr(),
        weights=weights.data_ptr(),
        counts=counts.data_ptr(),
    )
    extension.row_weights(params)
    return kinds, read, weights, counts
