"""Losses against listed columns and labels on the GPU. `sadkernels.reference.topk_span_kl` defines every function here."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from sadkernels.divergence import DivergenceConfig
from sadkernels.topk import TopkTarget, TopkValues
from sadkernels.triton import tiles
from sadkernels.triton.launch import Launch, layout_arguments, same_phase
from sadkernels.triton.span_kl import new_logits
from sadkernels.triton.supervised_rows import collect_rows_kernel
from sadkernels.triton.topk_span_kl_kernels import topk_span_kl_kernel

__all__ = ["backward", "forward", "forward_backward", "new_logits", "topk_launches"]

_COLLECT_BLOCK = 4096  # as for the span KL
_FEWEST_LISTED = 16  # so that short lists share one compilation


def forward(student: Tensor, target: TopkTarget, kinds: Tensor, config: DivergenceConfig, *, stats: bool) -> TopkValues:
    """The loss of every supervised row, its state and, with `stats`, its entropy and argmax."""
    values = _values(kinds, stats, state=True)
    _run(topk_launches(student, target, kinds, config, values))
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
    """Writes weights[n] d value[n] / d student to all of `grad` (..., V_s), which may be `student` itself."""
    nothing = TopkValues(None, None)
    _run(topk_launches(student, target, kinds, config, nothing, grad=grad, weights=weights, state_given=state.contiguous()))


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
    """`forward` without the state, and `backward`; the rows are read from memory once as long as they stay in L2."""
    values = _values(kinds, stats, state=False)
    _run(topk_launches(student, target, kinds, config, values, grad=grad, weights=weights))
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
    """`values`, and the gradient where there is a `grad`; `state_given` spares the pass that finds the totals."""
    n, columns = kinds.numel(), config.vocab_size
    if n == 0:
        return []
    rows = torch.empty(n + 1, dtype=torch.int32, device=kinds.device)
    tile, programs = tiles.two_pass_grid(columns, student.dtype, student.dtype, False, student.device)
    known: dict[str, Any] = {
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
        "n_listed": target.columns.shape[1],
        **_arithmetic(config),
        "alpha": target.alpha,
        "GRAD_ALIGNED": grad is None or same_phase(student, grad, tile.group),
        "MOST_LISTED": max(_FEWEST_LISTED, triton.next_power_of_2(target.columns.shape[1])),
    }
    collect = {"kinds": kinds, "weights": weights if state_given is not None else None, "rows": rows, "n_rows": n}
    collect |= {"value": values.value, "state": values.state, "entropies": None, "argmax": None}
    collect |= {"STATE_ROWS": 0 if values.state is None else 2, "BLOCK": _COLLECT_BLOCK}
    return [
        Launch(collect_rows_kernel, 1, collect, warps=16),
        Launch(topk_span_kl_kernel, min(n, programs), known, tile),
    ]


def _arithmetic(config: DivergenceConfig) -> dict[str, Any]:
    """z / T in powers of two is c x, or c tanh(inner x) with a cap."""
    scale, cap = config.student_scale, config.student_softcap
    return {
        "c": (scale if cap is None else cap) * math.log2(math.e) / config.temperature,
        "inner": 1.0 if cap is None else scale / cap,
        "grad_scale": scale / config.temperature,
        "CAPPED": cap is not None,
    }


def _values(kinds: Tensor, stats: bool, state: bool) -> TopkValues:
    """Statistics are few numbers, and begin as zeros: the index of the rows clears pairs of them only."""
    n, device = kinds.numel(), kinds.device
    return TopkValues(
        torch.empty(n, device=device),
        torch.empty((2, n), device=device) if state else None,
        torch.zeros(n, device=device) if stats else None,
        torch.zeros(n, dtype=torch.int32, device=device) if stats else None,
    )


def _run(launches: list[Launch]) -> None:
    for launch in launches:
        launch.run(launch.known["rows"].device)
