"""The functions of `sadkernels.reference.span_kl` on a compiled extension: outputs are allocated, one call fills them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig, RowValues
from sadkernels.native import params


class Launcher:
    """What both extensions do alike.

    Args:
        run: Launches the kernel on (student, teacher, kinds, config, grad or None, **vectors of `params.span_kl_params`).
    """

    def __init__(self, run: Callable[..., None]) -> None:
        self._run = run

    def log_sum_exps(self, student: Tensor, teacher: Tensor, kinds: Tensor, config: DivergenceConfig) -> Tensor:
        """See `sadkernels.reference.span_kl.log_sum_exps`."""
        lse = torch.empty((2, kinds.numel()), device=student.device)
        self._run(student, teacher, kinds, config, None, state=lse)
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
        values = params.new_values(kinds, stats=stats, state=True)
        lse = None if lse is None else lse.contiguous()
        self._run(student, teacher, kinds, config, None, lse_given=lse, **values._asdict())
        return values

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
        given = {"state_given": state.contiguous(), "weights": weights.contiguous()}
        self._run(student, teacher, kinds, config, grad, **given)

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
        state: bool = False,
    ) -> RowValues:
        """`forward`, without the state unless asked for, and `backward`, in one call."""
        values = params.new_values(kinds, stats=stats, state=state)
        self._run(student, teacher, kinds, config, grad, weights=weights.contiguous(), **values._asdict())
        return values
