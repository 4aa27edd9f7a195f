"""The parts of a launch that both extensions share: allocate the outputs, build the parameters, call the kernel once.

`sadkernels.reference` defines every function here: the modules `span_kl`, `topk_span_kl` and `span_ids`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig, RowValues
from sadkernels.native import params
from sadkernels.native.extension import load
from sadkernels.topk import TopkTarget, TopkValues

Kernel = Callable[[ModuleType, Any, torch.device], None]
"""Calls a kernel of an extension with a parameter struct, for tensors on a device."""


class SpanKlLauncher:
    """The functions of `span_kl` on one extension.

    Args:
        name: The extension, "cpu" or "cuda".
        kernel: Calls `span_kl` of the extension.
    """

    def __init__(self, name: str, kernel: Kernel) -> None:
        self._name, self._kernel = name, kernel

    def log_sum_exps(self, student: Tensor, teacher: Tensor, kinds: Tensor, config: DivergenceConfig) -> Tensor:
        """See `sadkernels.reference.span_kl.log_sum_exps`."""
        lse = torch.empty((2, kinds.numel()), device=student.device)
        self._launch(student, teacher, kinds, config, None, {"state": lse})
        return lse

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        kinds: Tensor,
        config: DivergenceConfig,
        *,
        stats: bool,
        lse: Tensor | None = None,
    ) -> RowValues:
        """See `sadkernels.reference.span_kl.forward`."""
        lse = None if lse is None else lse.contiguous()
        state = torch.empty((3, kinds.numel()), device=student.device)
        return self._values(student, teacher, kinds, config, None, {"lse_given": lse}, state, stats)

    def backward(
        self,
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
        inputs = {"state_given": state.contiguous(), "weights": weights.contiguous()}
        self._launch(student, teacher, kinds, config, grad, inputs)

    def forward_backward(
        self,
        student: Tensor,
        teacher: Tensor,
        kinds: Tensor,
        weights: Tensor,
        config: DivergenceConfig,
        *,
        stats: bool,
        grad: Tensor,
    ) -> RowValues:
        """Runs `forward` and `backward` in one call. The result has no state."""
        return self._values(student, teacher, kinds, config, grad, {"weights": weights.contiguous()}, None, stats)

    def _values(
        self,
        student: Tensor,
        teacher: Tensor,
        kinds: Tensor,
        config: DivergenceConfig,
        grad: Tensor | None,
        inputs: dict[str, Tensor | None],
        state: Tensor | None,
        stats: bool,
    ) -> RowValues:
        n, device = kinds.numel(), student.device
        value = torch.empty(n, device=device)
        entropies = torch.empty((2, n), device=device) if stats else None
        argmax = torch.empty((2, n), dtype=torch.int32, device=device) if stats else None
        vectors = {**inputs, "value": value, "state": state, "entropies": entropies, "argmax": argmax}
        self._launch(student, teacher, kinds, config, grad, vectors)
        return RowValues(value, state, entropies, argmax)

    def _launch(
        self,
        student: Tensor,
        teacher: Tensor,
        kinds: Tensor,
        config: DivergenceConfig,
        grad: Tensor | None,
        vectors: dict[str, Tensor | None],
    ) -> None:
        extension = load(self._name)
        struct = params.span_kl_params(extension, student, teacher, kinds, config, grad, vectors)
        self._kernel(extension, struct, student.device)


class TopkSpanKlLauncher:
    """The functions of `topk_span_kl` on one extension.

    Args:
        name: The extension, "cpu" or "cuda".
        kernel: Calls `topk_span_kl` of the extension.
    """

    def __init__(self, name: str, kernel: Kernel) -> None:
        self._name, self._kernel = name, kernel

    def forward(
        self, student: Tensor, target: TopkTarget, kinds: Tensor, config: DivergenceConfig, *, stats: bool
    ) -> TopkValues:
        """See `sadkernels.reference.topk_span_kl.forward`."""
        return self._values(student, target, kinds, config, None, {}, stats)

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
        inputs = {"state_given": state.contiguous(), "weights": weights.contiguous()}
        self._launch(student, target, kinds, config, grad, inputs)

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
        return self._values(student, target, kinds, config, grad, {"weights": weights.contiguous()}, stats)

    def _values(
        self,
        student: Tensor,
        target: TopkTarget,
        kinds: Tensor,
        config: DivergenceConfig,
        grad: Tensor | None,
        inputs: dict[str, Tensor | None],
        stats: bool,
    ) -> TopkValues:
        n, device = kinds.numel(), student.device
        value, state = torch.empty(n, device=device), torch.empty((2, n), device=device)
        entropy = torch.empty(n, device=device) if stats else None
        argmax = torch.empty(n, dtype=torch.int32, device=device) if stats else None
        vectors = {**inputs, "value": value, "state": state, "entropies": entropy, "argmax": argmax}
        self._launch(student, target, kinds, config, grad, vectors)
        return TopkValues(value, state, entropy, argmax)

    def _launch(
        self,
        student: Tensor,
        target: TopkTarget,
        kinds: Tensor,
        config: DivergenceConfig,
        grad: Tensor | None,
        vectors: dict[str, Tensor | None],
    ) -> None:
        extension = load(self._name)
        base = params.span_kl_params(extension, student, student, kinds, config, grad, vectors)  # no teacher logits
        self._kernel(extension, params.topk_span_kl_params(extension, base, target), student.device)


def span_ids_from_offsets(
    name: str,
    kernel: Kernel,
    offsets: Tensor,
    starts: Tensor,
    ends: Tensor,
    kinds: Tensor,
    row_splits: Tensor,
    masks: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """See `sadkernels.reference.span_ids.span_ids_from_offsets`; `name` and `kernel` as in the launchers."""
    extension = load(name)
    offsets, starts, ends, kinds, row_splits = (x.contiguous() for x in (offsets, starts, ends, kinds, row_splits))
    dtype, names = (torch.bool, ("m_r", "m_a")) if masks else (torch.uint8, ("ids",))
    outputs = {x: torch.empty(offsets.shape[:-1], dtype=dtype, device=offsets.device) for x in names}
    spans = {"starts": starts, "ends": ends, "kinds": kinds, "row_splits": row_splits}
    kernel(extension, params.span_ids_params(extension, offsets, **spans, **outputs), offsets.device)
    return tuple(outputs.values()) if masks else outputs["ids"]
