"""The functions of `sadkernels.reference.span_kl` on a compiled extension: outputs are allocated, one call fills them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sadkernels.comparison import Comparison, RowValues
from sadkernels.native import params


class Launcher:
    """What both extensions do alike.

    Args:
        run: Calls the kernel with (student, teacher, kinds, how, grad or None) and `params.span_kl_params`' vectors by name.
    """

    def __init__(self, run: Callable[..., None]) -> None:
        self._run = run

    def log_sum_exps(self, student: Tensor, teacher: Tensor, kinds: Tensor, how: Comparison) -> Tensor:
        """See `sadkernels.reference.span_kl.log_sum_exps`."""
        lse = torch.empty((2, kinds.numel()), device=student.device)
        self._run(student, teacher, kinds, how, None, state=lse)
        return lse

    def forward(
        self, student: Tensor, teacher: Tensor, kinds: Tensor, how: Comparison, *, stats: bool, lse: Tensor | None = None
    ) -> RowValues:
        """See `sadkernels.reference.span_kl.forward`."""
        values = params.new_values(kinds, stats=stats, state=True)
        lse = None if lse is None else lse.contiguous()
        self._run(student, teacher, kinds, how, None, lse_given=lse, **values._asdict())
        return values

    def backward(
        self,
        student: Tensor,
        teacher: Tensor,
        kinds: Tensor,
        state: Tensor,
        weights: Tensor,
        how: Comparison,
        *,
        grad: Tensor,
    ) -> None:
        """See `sadkernels.reference.span_kl.backward`."""
        given = {"state_given": state.contiguous(), "weights": weights.contiguous()}
        self._run(student, teacher, kinds, how, grad, **given)

    def forward_backward(
        self,
        student: Tensor,
        teacher: Tensor,
        kinds: Tensor,
        weights: Tensor,
        how: Comparison,
        *,
        stats: bool,
        grad: Tensor,
        state: bool = False,
    ) -> RowValues:
        """`forward`, without the state unless asked for, and `backward`, in one call."""
        values = params.new_values(kinds, stats=stats, state=state)
        self._run(student, teacher, kinds, how, grad, weights=weights.contiguous(), **values._asdict())
        return values
