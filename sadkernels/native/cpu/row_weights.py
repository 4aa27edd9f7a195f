"""Launcher of `csrc/cpu/row_weights.cpp`."""

from __future__ import annotations

import torch
from torch import Tensor

from sadkernels.native.extension import load
from sadkernels.tokens import REDUCTIONS, Tokens

_NUMBERS = {name: number for number, name in enumerate(REDUCTIONS)}


def row_weights(
    tokens: Tokens, lambdas: tuple[float, float, float], reduction: str, shift: bool, read_all: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `sadkernels.reference.row_weights.row_weights`; takes CPU tensors and gives float32 weights."""
    extension, rows, span_ids = load("cpu"), tokens.span_ids.numel(), tokens.span_ids.contiguous()
    kinds, counts = torch.empty(rows, dtype=torch.uint8), torch.empty(3, dtype=torch.int64)
    weights, read_all = torch.empty(rows, dtype=dtype), read_all or reduction == "none"
    read = kinds if read_all else torch.empty_like(kinds)
    others = {
        "token_weights": _contiguous(tokens.token_weights, torch.float32),
        "turn_ids": _contiguous(tokens.turn_ids, torch.int64),
        "normalizer": _contiguous(tokens.normalizer, torch.float64),
    }
    lambda_reason, lambda_act, lambda_observe = lambdas
    params = extension.RowWeightsParams(
        rows=rows,
        tokens=span_ids.shape[-1] if span_ids.dim() else 1,
        ids=span_ids.data_ptr(),
        id_bytes=span_ids.element_size(),
        lambda_reason=lambda_reason,
        lambda_act=lambda_act,
        lambda_observe=lambda_observe,
        reduction=_NUMBERS[reduction],
        shift=shift,
        kinds=kinds.data_ptr(),
        read=0 if read_all else read.data_ptr(),
        weights=weights.data_ptr(),
        counts=counts.data_ptr(),
        **{name: x.data_ptr() for name, x in others.items() if x is not None},
    )
    extension.row_weights(params)
    return kinds, read, weights, counts


def _contiguous(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype).contiguous()
