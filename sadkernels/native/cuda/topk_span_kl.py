"""Launcher of `csrc/cuda/topk_span_kl.cu`. `sadkernels.reference.topk_span_kl` defines every function here."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from sadkernels.native import params
from sadkernels.native.cuda.device import placement
from sadkernels.native.cuda.span_kl import new_logits
from sadkernels.native.launcher import Launcher, new_topk_values

__all__ = ["backward", "forward", "forward_backward", "new_logits"]


def _kernel(extension: ModuleType, struct: Any, device: torch.device) -> None:
    index, stream = placement(device)
    size = extension.topk_span_kl_scratch_bytes(struct)
    scratch = torch.empty(size, dtype=torch.uint8, device=device)  # freed early, as in `span_kl`
    extension.topk_span_kl(struct, scratch.data_ptr(), index, stream)


_launcher = Launcher("cuda", _kernel, params.topk_span_kl_params, new_topk_values)
forward, backward, forward_backward = _launcher.forward, _launcher.backward, _launcher.forward_backward
