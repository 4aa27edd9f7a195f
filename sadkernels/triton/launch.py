"""From tensors to a launch: what a kernel is called with, on which tile and grid, and how its rows lie in memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sadkernels.row_layout import RowLayout, row_layout
from sadkernels.triton.tiles import RowTile


class Launch(NamedTuple):
    """A kernel, how many programs of it, and what is known to call it with: it takes what it has parameters for.

    Kernels that walk rows have a `tile`; the others touch a few numbers a row and have `warps` alone.
    """

    kernel: Any
    programs: int
    known: dict[str, Any]
    tile: RowTile | None = None
    warps: int = 1

    def arguments(self) -> dict[str, Any]:
        """The kernel's parameters, constants included."""
        tile = {} if self.tile is None else {"GROUPS": self.tile.groups, "GROUP": self.tile.group}
        known = {**self.known, **tile}
        return {name: known[name] for name in self.kernel.arg_names}

    def options(self) -> dict[str, Any]:
        """What the compiler is told."""
        options: dict[str, Any] = {"enable_fp_fusion": True}  # Triton's default up to 3.9 only
        if self.tile is None:
            return options | {"num_warps": self.warps}
        if torch.version.hip is None:
            options["maxnreg"] = self.tile.registers
        return options | {"num_warps": self.tile.warps}

    def run(self, device: torch.device) -> None:
        with torch.cuda.device(device if device.type == "cuda" else -1):
            self.kernel[(self.programs,)](**self.arguments(), **self.options())


def layout_arguments(name: str, x: Tensor) -> dict[str, int]:
    """Where the rows of `x` begin, as kernels take it."""
    return {f"{name}_{field}": value for field, value in zip(RowLayout._fields, row_layout(x))}


def same_phase(a: Tensor, b: Tensor, group: int) -> bool:
    """Whether row i of `a` and row i of `b` begin equally far from an aligned group, for every i."""
    first = [x.data_ptr() // x.element_size() % group for x in (a, b)]
    (inner_a, outer_a, stride_a), (inner_b, outer_b, stride_b) = row_layout(a), row_layout(b)
    if outer_a == 0:  # one stride for all rows: cut it where the other tensor has its two
        inner_a, outer_a = inner_b, inner_b * stride_a
    if outer_b == 0:
        inner_b, outer_b = inner_a, inner_a * stride_b
    strides = [outer_a, stride_a, outer_b, stride_b]
    if all(stride % group == 0 for stride in strides):
        return first[0] == first[1]
    return (
        first[0] == first[1]
        and inner_a == inner_b
        and (outer_a - outer_b) % group == 0
        and (stride_a - stride_b) % group == 0
    )
