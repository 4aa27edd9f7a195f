"""Launcher of `csrc/cpu/span_kl.cpp`. `sadkernels.reference.span_kl` defines every function here."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sadkernels.native import params
from sadkernels.native.extension import load
from sadkernels.native.launcher import Launcher, new_row_values

_MIN_CACHED_BYTES = 1 << 20


def new_logits(shape: Sequence[int], like: Tensor) -> Tensor:
    """Returns uninitialized memory for logits or their gradient, with the dtype of `like`.

    Large tensors use memory that the extension caches between calls. PyTorch did not allocate it, so their storage cannot be
    resized: `resize_(0)` raises. Only logits and their gradients use it; the gradients of parameters do not.
    """
    size = like.element_size() * math.prod(shape)
    if size < _MIN_CACHED_BYTES:
        return like.new_empty(shape)
    memory = load("cpu").Buffer(bytes=size)  # lives as long as the tensor's storage
    logits = torch.frombuffer(memory, dtype=like.dtype).view(shape)
    if torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory:
        logits.fill_(torch.nan)  # as PyTorch does for its own allocations
    return logits


def scale(grad: Tensor, kinds: Tensor, factor: Tensor) -> None:
    """See `sadkernels.reference.span_kl.scale`."""
    value = float(factor)
    if value != 1.0:
        load("cpu").scale_rows(
            rows=kinds.numel(),
            columns=grad.shape[-1],
            grad=params.rows(grad),
            kinds=kinds.data_ptr(),
            factor=value,
            threads=torch.get_num_threads(),
            isa=instruction_set(),
        )


def instruction_set() -> str:
    """Returns the instruction set that SAD_CPU_ISA names; "" is the best one that this processor supports.

    Raises:
        ValueError: This processor or build does not have it.
    """
    return _supported(os.environ.get("SAD_CPU_ISA", ""))


@functools.cache
def _supported(isa: str) -> str:
    choices = load("cpu").supported_isas()
    if isa and isa not in choices:
        remedy = "Choose one of these, or unset the environment variable for the first."
        raise ValueError(f"SAD_CPU_ISA: expected one of {', '.join(map(repr, choices))}, got {isa!r}. {remedy}")
    return isa


def _kernel(extension: ModuleType, struct: Any, device: torch.device) -> None:
    extension.span_kl(struct, torch.get_num_threads(), instruction_set())


_launcher = Launcher("cpu", _kernel, params.span_kl_params, new_row_values)
log_sum_exps, forward, backward = _launcher.log_sum_exps, _launcher.forward, _launcher.backward
forward_backward = _launcher.forward_backward
