"""A (..., V) tensor as rows: the address of each row, without a copy."""

from __future__ import annotations

from typing import NamedTuple

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
