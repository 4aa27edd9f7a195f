"""`sadkernels.reference.topk_span_kl` on a compiled extension: outputs are allocated, one call fills them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig
from sadkernels.native import params
from sadkernels.topk import TopkTarget, TopkValues


class Launcher:
    """What both extensions do alike.

    Args:
        run: Calls the kernel for tensors on a device, with `TopkSpanKlParams` by name.
    """

    def __init__(self, run: Callable[[torch.device, dict[str, Any]], None]) -> None:
        self._run = run

    def forward(
        self, student: Tensor, target: TopkTarget, kinds: Tensor, config: DivergenceConfig, *, stats: bool
    ) -> TopkValues:
        """See `sadkernels.reference.topk_span_kl.forward`."""
        return self._values(student, target, kinds, config, stats)

    def backward(
        self,
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
        given = {"state_given": state.contiguous(), "weights": weights.contiguous()}
        self._call(student, target, kinds, config, grad, **given)

    def forward_backward(
        self,
        student: Tensor,
        target: TopkTarget,
        kinds: Tensor,
        weights: Tensor,
        config: DivergenceConfig,
        *,
        stats: bool,
        grad: Tensor,
    ) -> TopkValues:
        """See `sadkernels.reference.topk_span_kl.forward_backward`."""
        return self._values(student, target, kinds, config, stats, grad, weights=weights.contiguous())

    def _values(
        self,
        student: Tensor,
        target: TopkTarget,
        kinds: Tensor,
        config: DivergenceConfig,
        stats: bool,
        grad: Tensor | None = None,
        **given: Tensor,
    ) -> TopkValues:
        values = params.new_topk_values(kinds, stats=stats)
        outputs = {"value": values.value, "state": values.state, "entropies": values.entropy, "argmax": values.argmax}
        self._call(student, target, kinds, config, grad, **given, **outputs)
        return values

    def _call(
        self,
        student: Tensor,
        target: TopkTarget,
        kinds: Tensor,
        config: DivergenceConfig,
        grad: Tensor | None,
        **vectors: Tensor | None,
    ) -> None:
        arguments = params.span_kl_params(student, student, kinds, config, grad, **vectors)  # there are no teacher's rows
        self._run(student.device, arguments | params.topk_params(target))
