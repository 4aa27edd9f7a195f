"""From tensors to a kernel launch: the kernel's arguments, its tile and its grid."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig
from sadkernels.row_layout import RowLayout, row_layout
from sadkernels.triton.tiles import RowTile


class Launch(NamedTuple):
    """One launch of a kernel.

    Args:
        kernel: The Triton kernel.
        programs: Size of the grid.
        values: Argument values by parameter name. The kernel receives those that it has parameters for.
        tile: How a program walks a row. None for kernels that access a few numbers per row.
        warps: Warps per program if there is no tile.
    """

    kernel: Any
    programs: int
    values: dict[str, Any]
    tile: RowTile | None = None
    warps: int = 1

    def arguments(self) -> dict[str, Any]:
        """Returns a value for every parameter of the kernel, constants included."""
        tile = {} if self.tile is None else {"GROUPS": self.tile.groups, "GROUP": self.tile.group}
        values = {**self.values, **tile}
        return {name: values[name] for name in self.kernel.arg_names}

    def options(self) -> dict[str, Any]:
        """Returns the compiler options."""
        options: dict[str, Any] = {"enable_fp_fusion": True}  # Triton's default up to 3.9 only
        if self.tile is None:
            return options | {"num_warps": self.warps}
        if torch.version.hip is None:
            options["maxnreg"] = self.tile.registers
        return options | {"num_warps": self.tile.warps}

    def run(self, device: torch.device) -> None:
        """Launches the kernel on the current stream of `device`."""
        with torch.cuda.device(device if device.type == "cuda" else -1):
            self.kernel[(self.programs,)](**self.arguments(), **self.options())


def run_all(launches: list[Launch], device: torch.device) -> None:
    """Runs launches one after the other."""
    for launch in launches:
        launch.run(device)


def layout_arguments(name: str, x: Tensor) -> dict[str, int]:
    """Returns the `RowLayout` of `x` as kernel arguments: `{name}_inner`, `{name}_outer_stride`, `{name}_inner_stride`."""
    return {f"{name}_{field}": value for field, value in zip(RowLayout._fields, row_layout(x))}


def logit_arguments(side: str, config: DivergenceConfig) -> dict[str, Any]:
    """Returns the constants that turn a logit x of the student or teacher into an exponent; see `sadkernels.triton.softmax`.

    log2(e) z / T is c x, or c tanh(tanh_scale x) with a soft cap.
    """
    scale, cap = getattr(config, f"{side}_scale"), getattr(config, f"{side}_softcap")
    return {
        f"{side}_c": (scale if cap is None else cap) * math.log2(math.e) / config.temperature,
        f"{side}_tanh_scale": 1.0 if cap is None else scale / cap,
        f"{side.upper()}_CAPPED": cap is not None,
    }


def mixture_arguments(beta: float) -> dict[str, float]:
    """Returns the fields of `sadkernels.triton.divergences.Mixture` as kernel arguments."""
    distance = min(126.0 * math.log(2), math.log1p(1 / (3 * min(beta, 1 - beta))))
    border = -distance if beta <= 0.5 else distance
    return {"teacher_share": beta, "student_share": 1 - beta, "mixture_border": border}


def same_phase(a: Tensor, b: Tensor, group: int) -> bool:
    """Returns whether row i of `a` and row i of `b` start at the same element offset modulo `group`, for every i.

    May return False for tensors whose phases agree. Both tensors have the same number of rows.
    """
    first = [x.data_ptr() // x.element_size() % group for x in (a, b)]
    (inner_a, outer_a, stride_a), (inner_b, outer_b, stride_b) = row_layout(a), row_layout(b)
    n_rows = a.numel() // a.shape[-1]
    # Rows with one stride are split as the other tensor's rows are split. An outer stride of 0 does not mean one stride: it
    # is also the stride of a broadcast dimension.
    if inner_a >= n_rows:
        inner_a, outer_a = inner_b, inner_b * stride_a
    if inner_b >= n_rows:
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
