"""`sadkernels.reference.topk_span_kl` on a compiled extension: outputs are allocated, one call fills them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sadkernels.comparison import Comparison
from sadkernels.listed import ListedTarget, ListedValues
from sadkernels.native import params


class Launcher:
    """What both extensions do alike.

    Args:
        run: Calls the kernel for tensors on a device, with `TopkSpanKlParams` by name.
    """

    def __init__(self, run: Callable[[torch.device, dict[str, Any]], None]) -> None:
        self._run = run

    def forward(self, student: Tensor, target: ListedTarget, kinds: Tensor, how: Comparison, *, stats: bool) -> ListedValues:
        """See `sadkernels.reference.topk_span_kl.forward`."""
        return self._values(student, target, kinds, how, stats)

    def backward(
        self,
        student: Tensor,
        target: ListedTarget,
        kinds: Tensor,
        state: Tensor,
        weights: Tensor,
        how: Comparison,
        *,
        grad: Tensor,
    ) -> None:
        """See `sadkernels.reference.topk_span_kl.backward`."""
        given = {"state_given": state.contiguous(), "weights": weights.contiguous()}
        self._call(student, target, kinds, how, grad, **given)

    def forward_backward(
        self,
        student: Tensor,
        target: ListedTarget,
        kinds: Tensor,
        weights: Tensor,
        how: Comparison,
        *,
        stats: bool,
        grad: Tensor,
    ) -> ListedValues:
        """See `sadkernels.reference.topk_span_kl.forward_backward`."""
        return self._values(student, target, kinds, how, stats, grad, weights=weights.contiguous())

    def _values(
        self,
        student: Tensor,
        target: ListedTarget,
        kinds: Tensor,
        how: Comparison,
        stats: bool,
        grad: Tensor | None = None,
        **given: Tensor,
    ) -> ListedValues:
        values = params.new_listed_values(kinds, stats=stats)
        outputs = {"value": values.value, "state": values.state, "entropies": values.entropy, "argmax": values.argmax}
        self._call(student, target, kinds, how, grad, **given, **outputs)
        return values

    def _call(
        self,
        student: Tensor,
        target: ListedTarget,
        kinds: Tensor,
        how: Comparison,
        grad: Tensor | None,
        **vectors: Tensor | None,
    ) -> None:
        arguments = params.span_kl_params(student, student, kinds, how, grad, **vectors)  # there are no teacher's rows
        self._run(student.device, arguments | params.listed_params(target))
