"""Launcher of `csrc/cpu/span_kl.cpp`. `sadkernels.reference.span_kl` defines every function here."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig
from sadkernels.native import params
from sadkernels.native.extension import load
from sadkernels.native.span_kl import Launcher

_KEEP_FROM = 1 << 20  # bytes


def new_logits(shape: Sequence[int], like: Tensor) -> Tensor:
    """Memory for logits or their gradient; large ones lie in memory that is kept between calls."""
    size = like.element_size() * math.prod(shape)
    if size < _KEEP_FROM:
        return like.new_empty(shape)
    memory = load("cpu").Buffer(bytes=size)  # lives as long as the tensor's storage
    logits = torch.frombuffer(memory, dtype=like.dtype).view(shape)
    if torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory:
        logits.fill_(torch.nan)  # as PyTorch does with its own
    return logits


def scale(grad: Tensor, kinds: Tensor, factor: Tensor) -> None:
    """See `sadkernels.reference.span_kl.scale`."""
    value = float(factor)  # on the CPU, reading a tensor waits for nothing
    if value != 1.0:
        load("cpu").scale_rows(
            rows=kinds.numel(),
            columns=grad.shape[-1],
            grad=params.rows(grad),
            kinds=kinds.data_ptr(),
            factor=value,
            **where(),
        )


def _run(
    student: Tensor, teacher: Tensor, kinds: Tensor, config: DivergenceConfig, grad: Tensor | None, **vectors: Tensor | None
) -> None:
    arguments = params.span_kl_params(student, teacher, kinds, config, grad, **vectors)
    load("cpu").span_kl(**arguments, **where())


def where() -> dict[str, object]:
    """Threads as PyTorch's now; the instruction set, empty for the best that this processor has."""
    return {"threads": torch.get_num_threads(), "isa": os.environ.get("SAD_CPU_ISA", "")}


_launcher = Launcher(_run)
log_sum_exps, forward, backward = _launcher.log_sum_exps, _launcher.forward, _launcher.backward
forward_backward = _launcher.forward_backward
# The gradient is bit for bit that of `backward` from the state.
forward_backward_with_state = functools.partial(_launcher.forward_backward, state=True)
