"""The span KL on the GPU. `sadkernels.reference.span_kl` defines every function here; the signatures are the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig, RowValues
from sadkernels.triton.launch import Launch
from sadkernels.triton.span_kl_launches import Outputs, Problem, backward_launches, forward_launches, scale_launches


def new_logits(shape: Sequence[int], like: Tensor) -> Tensor:
    """Memory for logits or their gradient: dtype and device of `like`, contiguous, contents arbitrary."""
    return like.new_empty(shape)


def log_sum_exps(student: Tensor, teacher: Tensor, kinds: Tensor, config: DivergenceConfig) -> Tensor:
    """(2, N), log-sum-exps of z / T of student and teacher, 0 on rows not read."""
    state = torch.empty((2, kinds.numel()), device=student.device)
    _run(forward_launches(Problem(student, teacher, kinds, config), Outputs(state=state)), kinds)
    return state


def forward(
    student: Tensor, teacher: Tensor, kinds: Tensor, config: DivergenceConfig, *, stats: bool, lse: Tensor | None = None
) -> RowValues:
    """The divergence of every supervised row, its state and, with `stats`, its entropies and argmax."""
    outputs = _outputs(kinds, stats, state=True)
    _run(forward_launches(Problem(student, teacher, kinds, config, lse=lse), outputs), kinds)
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
    """Writes weights[n] d value[n] / d student to all of `grad` (..., V_s), which may be `student` itself."""
    _run(backward_launches(Problem(student, teacher, kinds, config, grad=grad, weights=weights), state), kinds)


def forward_backward(
    student: Tensor, teacher: Tensor, kinds: Tensor, weights: Tensor, config: DivergenceConfig, *, stats: bool, grad: Tensor
) -> RowValues:
    """`forward` without the state, and `backward`; the rows are read from memory once as long as they stay in L2."""
    outputs = _outputs(kinds, stats, state=False)
    _run(forward_launches(Problem(student, teacher, kinds, config, grad=grad, weights=weights), outputs), kinds)
    return RowValues(*outputs)


def scale(grad: Tensor, kinds: Tensor, factor: Tensor) -> None:
    """Multiplies the supervised rows of `grad` (..., V) by the 0-dim `factor`, which never leaves the device."""
    _run(scale_launches(grad, kinds, factor), kinds)


def _outputs(kinds: Tensor, stats: bool, state: bool) -> Outputs:
    n, device = kinds.numel(), kinds.device
    return Outputs(
        torch.empty(n, device=device),
        torch.empty((3, n), device=device) if state else None,
        torch.empty((2, n), device=device) if stats else None,
        torch.empty((2, n), dtype=torch.int32, device=device) if stats else None,
    )


def _run(launches: list[Launch], kinds: Tensor) -> None:
    for launch in launches:
        launch.run(kinds.device)
