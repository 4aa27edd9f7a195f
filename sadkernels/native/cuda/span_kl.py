"""Launcher of `csrc/cuda/span_kl.cu`. `sadkernels.reference.span_kl` defines every function here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig
from sadkernels.native import params
from sadkernels.native.cuda.device import placement
from sadkernels.native.extension import load
from sadkernels.native.span_kl import Launcher


def new_logits(shape: Sequence[int], like: Tensor) -> Tensor:
    """Memory for logits or their gradient: dtype and device of `like`, contiguous, contents arbitrary."""
    return like.new_empty(shape)


def scale(grad: Tensor, kinds: Tensor, factor: Tensor) -> None:
    """Multiplies the supervised rows of `grad` (..., V) by the 0-dim `factor`, which never leaves the device."""
    factor = factor.to(torch.float32)
    load("cuda").scale_rows(
        rows=kinds.numel(),
        columns=grad.shape[-1],
        grad=params.rows(grad),
        kinds=kinds.data_ptr(),
        factor=factor.data_ptr(),
        **placement(grad.device),
    )


def _run(
    student: Tensor, teacher: Tensor, kinds: Tensor, config: DivergenceConfig, grad: Tensor | None, **vectors: Tensor | None
) -> None:
    extension, where = load("cuda"), placement(student.device)
    arguments = params.span_kl_params(student, teacher, kinds, config, grad, **vectors)
    size = extension.span_kl_scratch_bytes(**arguments, device=where["device"])
    # PyTorch's allocator gives it to the next user of this stream, who runs after the kernel: nothing need be kept.
    scratch = torch.empty(size, dtype=torch.uint8, device=student.device)
    extension.span_kl(**arguments, scratch=scratch.data_ptr(), **where)


_launcher = Launcher(_run)
log_sum_exps, forward, backward = _launcher.log_sum_exps, _launcher.forward, _launcher.backward
forward_backward = _launcher.forward_backward
