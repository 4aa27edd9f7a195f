"""Launcher of `csrc/cuda/span_kl.cu`. `sadkernels.reference.span_kl` defines every function here."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sadkernels import tuning
from sadkernels.divergence import DivergenceConfig
from sadkernels.native import params
from sadkernels.native.cuda.device import placement
from sadkernels.native.extension import load
from sadkernels.native.launcher import Launcher, new_row_values


def new_logits(shape: Sequence[int], like: Tensor) -> Tensor:
    """Returns uninitialized memory for logits or their gradient, with the dtype and device of `like`."""
    return like.new_empty(shape)


def scale(grad: Tensor, kinds: Tensor, factor: Tensor) -> None:
    """See `sadkernels.reference.span_kl.scale`. The kernel reads `factor` from device memory."""
    factor = factor.to(torch.float32)
    index, stream = placement(grad.device)
    load("cuda").scale_rows(
        rows=kinds.numel(),
        columns=grad.shape[-1],
        grad=params.rows(grad),
        kinds=kinds.data_ptr(),
        factor=factor.data_ptr(),
        device=index,
        stream=stream,
    )


def _pack(
    extension: ModuleType, student: Tensor, teacher: Tensor, kinds: Tensor, config: DivergenceConfig, *rest: Any
) -> tuple[Any, Any]:
    """Returns the parameter struct, and what `sad tune` has chosen for the plan of its launches."""
    struct = params.span_kl_params(extension, student, teacher, kinds, config, *rest)
    call = student.device, config.vocab_size, student.dtype, teacher.dtype
    strategy = tuning.choice("cuda.lean" if config.divergence == "forward_kl" else "cuda.roomy", *call) or {}
    slices = tuning.choice("cuda.slices", *call) or {}
    return struct, extension.PlanChoice(**strategy, **slices)


def _kernel(extension: ModuleType, packed: tuple[Any, Any], device: torch.device) -> None:
    (struct, choice), (index, stream) = packed, placement(device)
    size = extension.span_kl_scratch_bytes(struct, index, choice)
    # The scratch memory may be freed before the kernel has run, because the allocator reuses it on the same stream only.
    scratch = torch.empty(size, dtype=torch.uint8, device=device)
    extension.span_kl(struct, scratch.data_ptr(), index, stream, choice)


_launcher = Launcher("cuda", _kernel, _pack, new_row_values)
log_sum_exps, forward, backward = _launcher.log_sum_exps, _launcher.forward, _launcher.backward
forward_backward = _launcher.forward_backward
