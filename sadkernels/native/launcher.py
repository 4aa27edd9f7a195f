"""The part of a launch that both extensions share: allocate the outputs, build the parameters, call the kernel once.

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

_OUTPUTS = ("value", "state", "entropies", "argmax")  # the kernels' names for the fields of RowValues and TopkValues


class Launcher:
    """The functions of `span_kl` or `topk_span_kl` on one extension.

    Args:
        name: The extension, "cpu" or "cuda".
        kernel: Calls the kernel.
        pack: Makes the parameter struct: `params.span_kl_params` or `params.topk_span_kl_params`.
        new_values: Allocates the outputs: `new_row_values` or `new_topk_values`.
    """

    def __init__(self, name: str, kernel: Kernel, pack: Callable[..., Any], new_values: Callable[..., Any]) -> None:
        self._name, self._kernel, self._pack, self._new_values = name, kernel, pack, new_values

    def log_sum_exps(self, student: Tensor, teacher: Tensor, kinds: Tensor, config: DivergenceConfig) -> Tensor:
        """See `sadkernels.reference.span_kl.log_sum_exps`."""
        lse = torch.empty((4, kinds.numel()), device=student.device)
        self._launch(student, teacher, kinds, config, None, {"state": lse})
        return lse

    def forward(
        self,
        student: Tensor,
        teacher: Tensor | TopkTarget,
        kinds: Tensor,
        config: DivergenceConfig,
        *,
        stats: bool,
        lse: Tensor | None = None,
    ) -> RowValues | TopkValues:
        """See `forward` of the reference module. `lse` is for `span_kl` only."""
        values = self._new_values(kinds, stats=stats, state=True)
        vectors = dict(zip(_OUTPUTS, values), lse_given=None if lse is None else lse.contiguous())
        self._launch(student, teacher, kinds, config, None, vectors)
        return values

    def backward(
        self,
        student: Tensor,
        teacher: Tensor | TopkTarget,
        kinds: Tensor,
        state: Tensor,
        weights: Tensor,
        config: DivergenceConfig,
        *,
        grad: Tensor,
    ) -> None:
        """See `backward` of the reference module."""
        vectors = {"state_given": state.contiguous(), "weights": weights.contiguous()}
        self._launch(student, teacher, kinds, config, grad, vectors)

    def forward_backward(
        self,
        student: Tensor,
        teacher: Tensor | TopkTarget,
        kinds: Tensor,
        weights: Tensor,
        config: DivergenceConfig,
        *,
        stats: bool,
        grad: Tensor,
    ) -> RowValues | TopkValues:
        """Runs `forward` and `backward` in one call. The result of `span_kl` has no state."""
        values = self._new_values(kinds, stats=stats, state=False)
        vectors = dict(zip(_OUTPUTS, values), weights=weights.contiguous())
        self._launch(student, teacher, kinds, config, grad, vectors)
        return values

    def _launch(
        self,
        student: Tensor,
        teacher: Tensor | TopkTarget,
        kinds: Tensor,
        config: DivergenceConfig,
        grad: Tensor | None,
        vectors: dict[str, Tensor | None],
    ) -> None:
        extension = load(self._name)
        struct = self._pack(extension, student, teacher, kinds, config, grad, vectors)
        self._kernel(extension, struct, student.device)


def new_row_values(kinds: Tensor, *, stats: bool, state: bool) -> RowValues:
    """Allocates the outputs of `span_kl` for N rows."""
    n, device = kinds.numel(), kinds.device
    return RowValues(
        torch.empty(n, device=device),
        torch.empty((5, n), device=device) if state else None,
        torch.empty((2, n), device=device) if stats else None,
        torch.empty((2, n), dtype=torch.int32, device=device) if stats else None,
    )


def new_topk_values(kinds: Tensor, *, stats: bool, state: bool) -> TopkValues:
    """Allocates the outputs of `topk_span_kl` for N rows. They always have a state."""
    n, device = kinds.numel(), kinds.device
    return TopkValues(
        torch.empty(n, device=device),
        torch.empty((4, n), device=device),
        torch.empty(n, device=device) if stats else None,
        torch.empty(n, dtype=torch.int32, device=device) if stats else None,
    )


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
    """See `sadkernels.reference.span_ids.span_ids_from_offsets`; `name` and `kernel` as in `Launcher`."""
    extension = load(name)
    offsets, starts, ends, kinds, row_splits = (x.contiguous() for x in (offsets, starts, ends, kinds, row_splits))
    dtype, names = (torch.bool, ("m_r", "m_a")) if masks else (torch.uint8, ("ids",))
    outputs = {x: torch.empty(offsets.shape[:-1], dtype=dtype, device=offsets.device) for x in names}
    spans = {"starts": starts, "ends": ends, "kinds": kinds, "row_splits": row_splits}
    kernel(extension, params.span_ids_params(extension, offsets, spans | outputs), offsets.device)
    return tuple(outputs.values()) if masks else outputs["ids"]
