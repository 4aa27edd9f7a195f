"""Launchers of the span KL. `sadkernels.reference.span_kl` defines the functions; the signatures are the same.

`forward`, `forward_backward` and `log_sum_exps` launch `span_kl_kernel`, or the slice kernels if a few long rows would leave
most of the GPU idle. For 16-bit logits without a soft cap it is launched twice: with few registers for ordinary rows, then
for the rows that it deferred. `backward` launches `span_kl_backward_kernel`. The functions `*_launches` build the launches
without running them, so that a kernel can be compiled without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig, RowValues
from sadkernels.triton import tiles
from sadkernels.triton.launch import Launch, layout_arguments, logit_arguments, mixture_arguments, run_all, same_phase
from sadkernels.triton.span_kl_kernels import scale_rows_kernel, span_kl_backward_kernel, span_kl_kernel
from sadkernels.triton.span_kl_slice_kernels import combine_slices_kernel, slice_totals_kernel, slice_values_kernel
from sadkernels.triton.supervised_rows import collect_rows


class Outputs(NamedTuple):
    """The output tensors of a forward pass, as in `RowValues`. `state` (4, N) alone requests the log-sum-exps."""

    value: Tensor | None = None
    state: Tensor | None = None
    entropies: Tensor | None = None
    argmax: Tensor | None = None


class Inputs(NamedTuple):
    """The arguments of the op. A `grad` needs `weights`."""

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

    @property
    def grad_in_second_pass(self) -> bool:
        """Whether the gradient needs a pass of its own after the sums: E_q[dlogp] of reverse_kl and jsd."""
        return self.grad is not None and self.config.divergence != "forward_kl"

    def kernel_values(self) -> dict[str, Any]:
        """Returns the kernel arguments by name, without outputs and scratch buffers."""
        config, group = self.config, tiles.group_size(*self.dtypes)
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
            "vocab_size": config.vocab_size,
            "grad_columns": self.student.shape[-1],
            **logit_arguments("student", config),
            **logit_arguments("teacher", config),
            "grad_scale": config.student_scale / config.temperature,
            **mixture_arguments(config.beta if config.divergence == "jsd" else 0.5),
            "DIVERGENCE": config.divergence,
            "TEACHER_ALIGNED": same_phase(self.student, self.teacher, group),
            "GRAD_ALIGNED": self.grad is None or same_phase(self.student, self.grad, group),
        }


def new_logits(shape: Sequence[int], like: Tensor) -> Tensor:
    """Returns uninitialized memory for logits or their gradient: contiguous, with the dtype and device of `like`."""
    return like.new_empty(shape)


def log_sum_exps(student: Tensor, teacher: Tensor, kinds: Tensor, config: DivergenceConfig) -> Tensor:
    """See `sadkernels.reference.span_kl.log_sum_exps`."""
    state = torch.empty((4, kinds.numel()), device=student.device)
    run_all(forward_launches(Inputs(student, teacher, kinds, config), Outputs(state=state)), kinds.device)
    return state


def forward(
    student: Tensor, teacher: Tensor, kinds: Tensor, config: DivergenceConfig, *, stats: bool, lse: Tensor | None = None
) -> RowValues:
    """See `sadkernels.reference.span_kl.forward`."""
    outputs = _outputs(kinds, stats, state=True)
    run_all(forward_launches(Inputs(student, teacher, kinds, config, lse=lse), outputs), kinds.device)
    return RowValues(*outputs)


def backward(
    student: Tensor,
    teacher: Tensor,
    kinds: Tensor,
    state: Tensor,
    weights: Tensor,
    config: DivergenceConfig,
    *,
    grad: Tensor,
) -> None:
    """See `sadkernels.reference.span_kl.backward`."""
    run_all(backward_launches(Inputs(student, teacher, kinds, config, grad, weights), state), kinds.device)


def forward_backward(
    student: Tensor, teacher: Tensor, kinds: Tensor, weights: Tensor, config: DivergenceConfig, *, stats: bool, grad: Tensor
) -> RowValues:
    """See `sadkernels.reference.span_kl.forward_backward`; returns no state.

    The kernel reads the rows from memory once as long as they stay in L2.
    """
    outputs = _outputs(kinds, stats, state=False)
    run_all(forward_launches(Inputs(student, teacher, kinds, config, grad, weights), outputs), kinds.device)
    return RowValues(*outputs)


def scale(grad: Tensor, kinds: Tensor, factor: Tensor) -> None:
    """See `sadkernels.reference.span_kl.scale`. `factor` never leaves the device."""
    run_all(scale_launches(grad, kinds, factor), kinds.device)


def forward_launches(inputs: Inputs, outputs: Outputs) -> list[Launch]:
    """Returns the launches that fill `outputs`, and the gradient if the inputs have a `grad`."""
    n, columns = inputs.kinds.numel(), inputs.config.vocab_size
    if n == 0:
        return []
    device, fits_64_registers = inputs.student.device, _fits_64_registers(inputs, outputs)
    grid = tiles.sliced_grid(columns, *inputs.dtypes, fits_64_registers, device)
    slices = tiles.slice_rows(n, columns, grid)
    if slices.count > 1:
        return _slice_launches(inputs, outputs, grid.tile, slices)
    rows, collect = collect_rows(inputs.kinds, **outputs._asdict())
    values = {**inputs.kernel_values(), **outputs._asdict(), "rows": rows}

    def whole_rows(which: str, fits_64_registers: bool) -> Launch:
        grid = tiles.two_pass_grid(columns, *inputs.dtypes, fits_64_registers, device)
        return Launch(span_kl_kernel, min(n, grid.programs), {**values, "ROWS": which}, grid.tile)

    if not _has_fast_passes(inputs, outputs):
        return [collect, whole_rows("all", fits_64_registers)]
    ordinary = whole_rows("ordinary", _fast_passes_fit_64_registers(inputs, outputs))
    return [collect, ordinary, whole_rows("deferred", fits_64_registers)]


def backward_launches(inputs: Inputs, state: Tensor) -> list[Launch]:
    """Returns the launches that write the gradient from the state that `forward` returned."""
    if inputs.kinds.numel() == 0:
        return []
    rows, collect = collect_rows(inputs.kinds, inputs.weights)
    return [collect, _gradient_launch(inputs, state, rows)]


def scale_launches(grad: Tensor, kinds: Tensor, factor: Tensor) -> list[Launch]:
    """Returns the launch that multiplies the rows of non-zero kind by `factor`."""
    n, columns = kinds.numel(), grad.shape[-1]
    if n == 0:
        return []
    grid = tiles.one_pass_grid(columns, grad.device, grad.dtype)
    slices = tiles.slice_rows(n, columns, grid)
    values = {"grad": grad, "kinds": kinds, "factor": factor, **layout_arguments("grad", grad), "n_rows": n}
    values |= {"grad_columns": columns, "slices": slices.count, "slice_columns": slices.columns}
    return [Launch(scale_rows_kernel, min(n * slices.count, grid.programs), values, grid.tile)]


def _slice_launches(inputs: Inputs, outputs: Outputs, tile: tiles.RowTile, slices: tiles.Slices) -> list[Launch]:
    n, device = inputs.kinds.numel(), inputs.student.device
    stats, grad_in_second_pass = outputs.argmax is not None, inputs.grad_in_second_pass
    if grad_in_second_pass and outputs.state is None:
        outputs = outputs._replace(state=torch.empty((5, n), device=device))
    rows, collect = collect_rows(inputs.kinds, **outputs._asdict())

    def scratch(fields: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty((fields, n, slices.count), dtype=dtype, device=device)

    values = {
        **inputs.kernel_values(),
        **outputs._asdict(),
        "grad": None if grad_in_second_pass else inputs.grad,
        "rows": rows,
        "totals": scratch(4) if inputs.lse is None or stats else None,
        "best": scratch(2) if stats else None,
        "best_column": scratch(2, torch.int32) if stats else None,
        "sums": None if outputs.value is None else scratch(4),
        "slices": slices.count,
        "slice_columns": slices.columns,
        "ENTROPIES": outputs.entropies is not None,
        "GRAD_LATER": grad_in_second_pass,
        "MAX_SLICES": tiles.MAX_SLICES,
    }
    launches = [collect]
    if values["totals"] is not None:
        launches.append(Launch(slice_totals_kernel, n * slices.count, values, tile))
    if outputs.value is not None:
        launches.append(Launch(slice_values_kernel, n * slices.count, values, tile))
    launches.append(Launch(combine_slices_kernel, n, values))
    if grad_in_second_pass:
        launches.append(_gradient_launch(inputs, outputs.state, rows))
    return launches


def _gradient_launch(inputs: Inputs, state: Tensor, rows: Tensor) -> Launch:
    n, columns = inputs.kinds.numel(), inputs.config.vocab_size
    grid = tiles.one_pass_grid(columns, inputs.student.device, *inputs.dtypes)
    slices = tiles.slice_rows(n, columns, grid)
    values = {**inputs.kernel_values(), "state": state, "rows": rows}
    values |= {"slices": slices.count, "slice_columns": slices.columns}
    return Launch(span_kl_backward_kernel, min(n * slices.count, grid.programs), values, grid.tile)


def _has_fast_passes(inputs: Inputs, outputs: Outputs) -> bool:
    """Returns whether `span_kl_fast_passes` can compute the outputs for ordinary rows."""
    uncapped = inputs.config.student_softcap is None and inputs.config.teacher_softcap is None
    both_16_bit = inputs.student.dtype == inputs.teacher.dtype and inputs.student.dtype.itemsize == 2
    return both_16_bit and uncapped and outputs.value is not None and inputs.lse is None


def _fast_passes_fit_64_registers(inputs: Inputs, outputs: Outputs) -> bool:
    """Returns whether the fast passes need no more than 64 registers per thread.

    float16 takes a few more: it spills on sm_86 and sm_89. So do the statistics with pairs of float32.
    """
    if inputs.student.dtype != torch.bfloat16:
        return False
    if outputs.argmax is None:
        return inputs.config.divergence != "jsd"
    return inputs.config.divergence == "forward_kl" and not _computes_pairs(inputs)


def _fits_64_registers(inputs: Inputs, outputs: Outputs) -> bool:
    """Returns whether the passes for any values need no more than 64 registers: no argmax, no tanh, no mixture.

    float16 takes a few more: it spills on sm_90. So do different dtypes with pairs of float32.
    """
    config, dtypes = inputs.config, inputs.dtypes
    return (
        outputs.argmax is None
        and config.divergence != "jsd"
        and config.student_softcap is None
        and config.teacher_softcap is None
        and torch.float16 not in dtypes
        and not (dtypes[0] != dtypes[1] and _computes_pairs(inputs))
    )


def _computes_pairs(inputs: Inputs) -> bool:
    """Returns whether the GPU (sm_100, sm_103) computes two float32 per instruction, in aligned pairs of registers."""
    return tiles.compute_capability(inputs.student.device) in (100, 103)


def _outputs(kinds: Tensor, stats: bool, state: bool) -> Outputs:
    n, device = kinds.numel(), kinds.device
    return Outputs(
        torch.empty(n, device=device),
        torch.empty((5, n), device=device) if state else None,
        torch.empty((2, n), device=device) if stats else None,
        torch.empty((2, n), dtype=torch.int32, device=device) if stats else None,
    )
