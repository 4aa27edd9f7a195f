"""Launchers of the top-k losses. `sadkernels.reference.topk_span_kl` defines the functions; the signatures are the same."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from sadkernels.divergence import DivergenceConfig
from sadkernels.topk import TopkTarget, TopkValues
from sadkernels.triton import tiles
from sadkernels.triton.launch import Launch, layout_arguments, logit_arguments, run_all, same_phase
from sadkernels.triton.span_kl import new_logits
from sadkernels.triton.supervised_rows import collect_rows
from sadkernels.triton.topk_span_kl_kernels import topk_span_kl_kernel

__all__ = ["backward", "forward", "forward_backward", "new_logits", "topk_launches"]

_SMALLEST_MAX_K = 16  # every k up to here shares one compilation


def forward(student: Tensor, target: TopkTarget, kinds: Tensor, config: DivergenceConfig, *, stats: bool) -> TopkValues:
    """See `sadkernels.reference.topk_span_kl.forward`."""
    values = _values(kinds, stats, state=True)
    run_all(topk_launches(student, target, kinds, config, values), kinds.device)
    return values


def backward(
    student: Tensor,
    target: TopkTarget,
    kinds: Tensor,
    state: Tensor,
    weights: Tensor,
    config: DivergenceConfig,
    *,
    grad: Tensor,
) -> None:
    """See `sadkernels.reference.topk_span_kl.backward`."""
    no_values, state = TopkValues(None, None), state.contiguous()
    run_all(
        topk_launches(student, target, kinds, config, no_values, grad=grad, weights=weights, state_given=state), kinds.device
    )


def forward_backward(
    student: Tensor,
    target: TopkTarget,
    kinds: Tensor,
    weights: Tensor,
    config: DivergenceConfig,
    *,
    stats: bool,
    grad: Tensor,
) -> TopkValues:
    """See `sadkernels.reference.topk_span_kl.forward_backward`; returns no state.

    The kernel reads the rows from memory once as long as they stay in L2.
    """
    values = _values(kinds, stats, state=False)
    run_all(topk_launches(student, target, kinds, config, values, grad=grad, weights=weights), kinds.device)
    return values


def topk_launches(
    student: Tensor,
    target: TopkTarget,
    kinds: Tensor,
    config: DivergenceConfig,
    values: TopkValues,
    *,
    grad: Tensor | None = None,
    weights: Tensor | None = None,
    state_given: Tensor | None = None,
) -> list[Launch]:
    """Returns the launches that fill `values`, and `grad` if given.

    With `state_given`, the state of a forward pass, the kernel skips the pass that computes the totals.
    """
    n, k, columns = kinds.numel(), target.columns.shape[1], config.vocab_size
    if n == 0:
        return []
    rows, collect = collect_rows(kinds, None if state_given is None else weights, value=values.value, state=values.state)
    grid = tiles.two_pass_grid(columns, student.dtype, student.dtype, False, student.device, topk=True)
    arguments = {
        "student": student,
        "grad": grad,
        "rows": rows,
        "weights": weights,
        "state_given": state_given,
        "value": values.value,
        "state": values.state,
        "entropies": values.entropy,
        "argmax": values.argmax,
        "columns": target.columns,
        "log_p": target.log_p,
        "log_tail": target.log_tail,
        "labels": target.labels,
        **layout_arguments("student", student),
        **layout_arguments("grad", student if grad is None else grad),
        "n_rows": n,
        "vocab_size": columns,
        "grad_columns": student.shape[-1],
        "k": k,
        **logit_arguments("student", config),
        "grad_scale": config.student_scale / config.temperature,
        "alpha": target.alpha,
        "GRAD_ALIGNED": grad is None or same_phase(student, grad, grid.tile.group),
        "MAX_K": max(_SMALLEST_MAX_K, triton.next_power_of_2(k)),
    }
    return [collect, Launch(topk_span_kl_kernel, min(n, grid.programs), arguments, grid.tile)]


def _values(kinds: Tensor, stats: bool, state: bool) -> TopkValues:
    """Allocates the outputs. The statistics start as zeros, because `collect_rows` clears them in pairs only."""
    n, device = kinds.numel(), kinds.device
    return TopkValues(
        torch.empty(n, device=device),
        torch.empty((4, n), device=device) if state else None,
        torch.zeros(n, device=device) if stats else None,
        torch.zeros(n, dtype=torch.int32, device=device) if stats else None,
    )
