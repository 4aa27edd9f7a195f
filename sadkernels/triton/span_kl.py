"""Launchers of the span KL. `sadkernels.reference.span_kl` defines every function here; the signatures are the same."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sadkernels.rows import RowLayout, row_layout
from sadkernels.triton.span_kl_kernels import scale_rows_kernel, span_kl_backward_kernel, span_kl_kernel
from sadkernels.triton.tiles import RowTile, one_pass_tile, two_pass_tile


class Launch(NamedTuple):
    """A kernel and everything it is called with; a program per row."""

    kernel: Any
    n_rows: int
    arguments: dict[str, Any]
    tile: RowTile

    def constants(self) -> dict[str, int]:
        """The tile as the kernel sees it."""
        return {"GROUPS": self.tile.groups, "GROUP": self.tile.group}

    def options(self) -> dict[str, Any]:
        """The tile as the compiler sees it."""
        options = {"num_warps": self.tile.warps, "enable_fp_fusion": True}  # Triton's default up to 3.9 only
        if self.tile.registers is not None and torch.version.hip is None:
            options["maxnreg"] = self.tile.registers
        return options

    def run(self, device: torch.device) -> None:
        if self.n_rows == 0:
            return
        with torch.cuda.device(device if device.type == "cuda" else -1):
            self.kernel[(self.n_rows,)](**self.arguments, **self.constants(), **self.options())


def _layout(name: str, x: Tensor) -> dict[str, int]:
    layout = row_layout(x)
    return {f"{name}_{field}": value for field, value in zip(RowLayout._fields, layout)}


def _same_phase(a: Tensor, b: Tensor, group: int) -> bool:
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


def _arguments(
    student: Tensor, teacher: Tensor, kinds: Tensor, grad: Tensor | None, group: int, vocab_size: int, temperature: float
) -> dict[str, Any]:
    """What both kernels of the KL take."""
    return {
        "student": student,
        "teacher": teacher,
        "grad": grad,
        "kinds": kinds,
        **_layout("student", student),
        **_layout("teacher", teacher),
        **_layout("grad", student if grad is None else grad),
        "n_rows": kinds.numel(),
        "vocab_size": vocab_size,
        "grad_columns": student.shape[-1],
        "c": math.log2(math.e) / temperature,
        "inverse_temperature": 1.0 / temperature,
        "TEACHER_ALIGNED": _same_phase(student, teacher, group),
        "GRAD_ALIGNED": grad is None or _same_phase(student, grad, group),
    }


def two_passes(
    student: Tensor, teacher: Tensor, kinds: Tensor, grad: Tensor | None, vocab_size: int, temperature: float, **outputs: Any
) -> Launch:
    """KL and whatever else of `weights`, `kl`, `lse`, `extras` and `grad` is not None."""
    tile = two_pass_tile(vocab_size, student.dtype, teacher.dtype, outputs["extras"] is not None, student.device)
    arguments = _arguments(student, teacher, kinds, grad, tile.group, vocab_size, temperature)
    return Launch(span_kl_kernel, kinds.numel(), {**arguments, **outputs}, tile)


def one_pass(
    student: Tensor, teacher: Tensor, kinds: Tensor, grad: Tensor, vocab_size: int, temperature: float, **inputs: Tensor
) -> Launch:
    """The gradient, given `lse` and `weights`."""
    tile = one_pass_tile(vocab_size, student.dtype, teacher.dtype)
    arguments = _arguments(student, teacher, kinds, grad, tile.group, vocab_size, temperature)
    return Launch(span_kl_backward_kernel, kinds.numel(), {**arguments, **inputs}, tile)


def scaling(grad: Tensor, kinds: Tensor, factor: Tensor) -> Launch:
    """`scale`, not yet launched."""
    columns = grad.shape[-1]
    arguments = {"grad": grad, "kinds": kinds, "factor": factor, **_layout("grad", grad), "grad_columns": columns}
    return Launch(scale_rows_kernel, kinds.numel(), arguments, one_pass_tile(columns, grad.dtype))


def forward(
    student: Tensor, teacher: Tensor, kinds: Tensor, *, vocab_size: int, temperature: float, stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """KL (N,), log-sum-exps (2, N) and, with `stats`, entropies and agreement (3, N)."""
    n = kinds.numel()
    kl, lse, extras = (torch.empty(shape, device=student.device) for shape in ((n,), (2, n), (3, n if stats else 0)))
    outputs = {"weights": None, "kl": kl, "lse": lse, "extras": extras if stats else None}
    two_passes(student, teacher, kinds, None, vocab_size, temperature, **outputs).run(student.device)
    return kl, lse, extras


def backward(
    student: Tensor,
    teacher: Tensor,
    kinds: Tensor,
    lse: Tensor,
    weights: Tensor,
    *,
    vocab_size: int,
    temperature: float,
    grad: Tensor,
) -> None:
    """Writes weights[n] dKL_n/dstudent to `grad` (..., V_s), which may be `student` itself."""
    one_pass(student, teacher, kinds, grad, vocab_size, temperature, lse=lse, weights=weights).run(student.device)


def forward_backward(
    student: Tensor,
    teacher: Tensor,
    kinds: Tensor,
    weights: Tensor,
    *,
    vocab_size: int,
    temperature: float,
    stats: bool,
    grad: Tensor,
) -> tuple[Tensor, Tensor]:
    """KL (N,), `extras` as in `forward`, and the gradient as in `backward`, from one kernel."""
    n = kinds.numel()
    kl, extras = (torch.empty(shape, device=student.device) for shape in ((n,), (3, n if stats else 0)))
    outputs = {"weights": weights, "kl": kl, "lse": None, "extras": extras if stats else None}
    two_passes(student, teacher, kinds, grad, vocab_size, temperature, **outputs).run(student.device)
    return kl, extras


def scale(grad: Tensor, kinds: Tensor, factor: Tensor) -> None:
    """Multiplies the supervised rows of `grad` (..., V) by the 0-dim `factor`, which never leaves the device."""
    scaling(grad, kinds, factor).run(grad.device)
