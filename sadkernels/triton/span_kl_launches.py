"""Which kernels of the span KL run one after the other, on which grid and with what scratch memory."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig
from sadkernels.triton import tiles
from sadkernels.triton.launch import Launch, layout_arguments, same_phase
from sadkernels.triton.span_kl_gradients import scale_rows_kernel, span_kl_backward_kernel
from sadkernels.triton.span_kl_kernels import span_kl_kernel
from sadkernels.triton.span_kl_slice_kernels import combine_slices_kernel, slice_totals_kernel, slice_values_kernel
from sadkernels.triton.supervised_rows import collect_rows_kernel

_COLLECT_BLOCK = 4096  # rows at a time of one program, 8 for each of 512 threads


class Outputs(NamedTuple):
    """What is wanted of every row, as in `RowValues`; `state` alone asks for the log-sum-exps, (2, N)."""

    value: Tensor | None = None
    state: Tensor | None = None
    entropies: Tensor | None = None
    argmax: Tensor | None = None


class Problem(NamedTuple):
    """What the functions of the op are called with; a `grad` needs `weights`."""

    student: Tensor
    teacher: Tensor
    kinds: Tensor
    config: DivergenceConfig
    grad: Tensor | None = None
    weights: Tensor | None = None
    lse: Tensor | None = None

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        return self.student.dtype, self.teacher.dtype

    def arguments(self) -> dict[str, Any]:
        """Everything that kernels take but scratch memory and outputs."""
        group = tiles.group_size(*self.dtypes)
        return {
            "student": self.student,
            "teacher": self.teacher,
            "grad": self.grad,
            "weights": self.weights,
            "lse": self.lse,
            **layout_arguments("student", self.student),
            **layout_arguments("teacher", self.teacher),
            **layout_arguments("grad", self.student if self.grad is None else self.grad),
            "n_rows": self.kinds.numel(),
            "vocab_size": self.config.vocab_size,
            "grad_columns": self.student.shape[-1],
            **_arithmetic(self.config),
            "TEACHER_ALIGNED": same_phase(self.student, self.teacher, group),
            "GRAD_ALIGNED": self.grad is None or same_phase(self.student, self.grad, group),
        }


def _arithmetic(config: DivergenceConfig) -> dict[str, Any]:
    """z / T in powers of two is c x, or c tanh(inner x) with a cap; d z / d x is what `grad_scale` and the tanh make."""

    def factors(scale: float, cap: float | None) -> tuple[float, float]:
        c = (scale if cap is None else cap) * math.log2(math.e) / config.temperature
        return c, 1.0 if cap is None else scale / cap

    s_c, s_inner = factors(config.student_scale, config.student_softcap)
    t_c, t_inner = factors(config.teacher_scale, config.teacher_softcap)
    return {
        "s_c": s_c,
        "t_c": t_c,
        "s_inner": s_inner,
        "t_inner": t_inner,
        "grad_scale": config.student_scale / config.temperature,
        "beta": config.beta,
        "DIVERGENCE": config.divergence,
        "S_CAPPED": config.student_softcap is not None,
        "T_CAPPED": config.teacher_softcap is not None,
    }


def _collect(problem: Problem, outputs: Outputs, weights: Tensor | None = None) -> tuple[Tensor, Launch]:
    """The index of the rows that are read, and the launch that makes it."""
    n = problem.kinds.numel()
    rows = torch.empty(n + 1, dtype=torch.int32, device=problem.kinds.device)
    known = {"kinds": problem.kinds, "weights": weights, "rows": rows, **outputs._asdict(), "n_rows": n}
    known |= {"STATE_ROWS": 0 if outputs.state is None else outputs.state.shape[0], "BLOCK": _COLLECT_BLOCK}
    return rows, Launch(collect_rows_kernel, 1, known, warps=16)


def _is_lean(config: DivergenceConfig, outputs: Outputs) -> bool:
    """Whether 64 registers do: no argmax to track, no tanh, no mixture."""
    return (
        outputs.argmax is None
        and config.divergence != "jsd"
        and config.student_softcap is None
        and config.teacher_softcap is None
    )


def forward_launches(problem: Problem, outputs: Outputs) -> list[Launch]:
    """`outputs`, and the gradient where the problem has a `grad`."""
    n, columns = problem.kinds.numel(), problem.config.vocab_size
    if n == 0:
        return []
    device, lean = problem.student.device, _is_lean(problem.config, outputs)
    grid = tiles.sliced_grid(*problem.dtypes, lean, device)
    slices = tiles.slice_rows(n, columns, grid)
    if slices.count > 1:
        return _sliced(problem, outputs, grid.tile, slices)
    rows, collect = _collect(problem, outputs)
    tile, programs = tiles.two_pass_grid(columns, *problem.dtypes, lean, device)
    known = {**problem.arguments(), **outputs._asdict(), "rows": rows}
    return [collect, Launch(span_kl_kernel, min(n, programs), known, tile)]


def _sliced(problem: Problem, outputs: Outputs, tile: tiles.RowTile, slices: tiles.Slices) -> list[Launch]:
    n, device = problem.kinds.numel(), problem.student.device
    stats = outputs.argmax is not None
    gradient_later = problem.grad is not None and problem.config.divergence != "forward_kl"
    if gradient_later and outputs.state is None:
        outputs = outputs._replace(state=torch.empty((3, n), device=device))
    rows, collect = _collect(problem, outputs)

    def scratch(fields: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty((fields, n, slices.count), dtype=dtype, device=device)

    known = {
        **problem.arguments(),
        **outputs._asdict(),
        "grad": None if gradient_later else problem.grad,
        "rows": rows,
        "totals": scratch(4) if problem.lse is None or stats else None,
        "best": scratch(2) if stats else None,
        "best_column": scratch(2, torch.int32) if stats else None,
        "sums": None if outputs.value is None else scratch(4),
        "slices": slices.count,
        "slice_columns": slices.columns,
        "ENTROPIES": outputs.entropies is not None,
        "READ_AGAIN": gradient_later,
        "MAX_SLICES": tiles.MAX_SLICES,
    }
    launches = [collect]
    if known["totals"] is not None:
        launches.append(Launch(slice_totals_kernel, n * slices.count, known, tile))
    if outputs.value is not None:
        launches.append(Launch(slice_values_kernel, n * slices.count, known, tile))
    launches.append(Launch(combine_slices_kernel, n, known))
    if gradient_later:
        launches.append(_gradient(problem, outputs.state, rows))
    return launches


def _gradient(problem: Problem, state: Tensor, rows: Tensor) -> Launch:
    n, columns = problem.kinds.numel(), problem.config.vocab_size
    grid = tiles.one_pass_grid(columns, problem.student.device, *problem.dtypes)
    slices = tiles.slice_rows(n, columns, grid)
    known = {**problem.arguments(), "state": state, "rows": rows, "slices": slices.count, "slice_columns": slices.columns}
    return Launch(span_kl_backward_kernel, min(n * slices.count, grid.programs), known, grid.tile)


def backward_launches(problem: Problem, state: Tensor) -> list[Launch]:
    """The gradient from the state that `forward` left."""
    if problem.kinds.numel() == 0:
        return []
    rows, collect = _collect(problem, Outputs(), problem.weights)
    return [collect, _gradient(problem, state, rows)]


def scale_launches(grad: Tensor, kinds: Tensor, factor: Tensor) -> list[Launch]:
    """Rows of non-zero kind, times `factor`."""
    n, columns = kinds.numel(), grad.shape[-1]
    if n == 0:
        return []
    grid = tiles.one_pass_grid(columns, grad.device, grad.dtype)
    slices = tiles.slice_rows(n, columns, grid)
    known = {"grad": grad, "kinds": kinds, "factor": factor, **layout_arguments("grad", grad), "n_rows": n}
    known |= {"grad_columns": columns, "slices": slices.count, "slice_columns": slices.columns}
    return [Launch(scale_rows_kernel, min(n * slices.count, grid.programs), known, grid.tile)]
