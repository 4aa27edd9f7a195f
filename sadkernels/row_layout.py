"""A (..., V) tensor as rows: the address of each row, without a copy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RowLayout(NamedTuple):
    """Row i begins at element `(i // inner) * outer_stride + (i % inner) * inner_stride`."""

    inner: int
    outer_stride: int
    inner_stride: int


def row_layout(x: Tensor) -> RowLayout | None:
    """The layout of the rows of `x` (..., V), or None if its leading dimensions need more than two strides."""
    if x.numel() == 0:
        return RowLayout(1, 0, 0)  # no row has an address; PyTorch calls such a tensor contiguous whatever its strides are
    if x.is_contiguous() and (columns := x.shape[-1]) and (rows := x.numel() // columns) > 1:
        return RowLayout(rows, 0, columns)  # the result of the code below, faster
    groups: list[tuple[int, int]] = []  # (size, stride), innermost first; neighbors are merged if their strides allow it
    for size, stride in reversed(list(zip(x.shape[:-1], x.stride()[:-1]))):
        if size == 1:
            continue
        if groups and stride == groups[-1][0] * groups[-1][1]:
            groups[-1] = (groups[-1][0] * size, groups[-1][1])
        else:
            groups.append((size, stride))
    if len(groups) > 2:
        return None
    inner, inner_stride = groups[0] if groups else (1, 0)
    return RowLayout(max(inner, 1), groups[1][1] if len(groups) == 2 else 0, inner_stride)


def with_row_layout(x: Tensor) -> Tensor:
    """`x` itself if its rows have a `RowLayout`, else a contiguous copy."""
    return x if x.is_contiguous() or row_layout(x) is not None else x.contiguous()


def overlaps_itself(x: Tensor) -> bool:
    """Whether two elements may have the same address: a stride is no larger than the extent of the smaller strides."""
    if x.numel() == 0 or x.is_contiguous():
        return False
    dims = [(size, stride) for size, stride in zip(x.shape, x.stride()) if size > 1]
    for at, (_, stride) in enumerate(dims):
        if stride <= sum((n - 1) * s for i, (n, s) in enumerate(dims) if i != at and s <= stride):
            return True
    return False


def gradient_strides(x: Tensor) -> tuple[int, ...]:
    """Strides for the gradient of `x` (..., V): those of `x`, so that rows of both begin equally far from a 16-byte border.

    Contiguous strides if rows of `x` overlap, need more than two strides, or leave more than an eighth of the memory unused.
    """
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))
    if x.numel() == 0 or extent > x.numel() * 9 // 8 or overlaps_itself(x) or row_layout(x) is None:
        return torch.empty(x.shape, device="meta").stride()
    return x.stride()
