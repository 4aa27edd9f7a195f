"""Launcher of `csrc/cuda/topk_span_kl.cu`. `sadkernels.reference.topk_span_kl` defines every function here."""

from __future__ import annotations

from typing import Any

import torch

from sadkernels.native.cuda.device import placement
from sadkernels.native.cuda.span_kl import new_logits
from sadkernels.native.extension import load
from sadkernels.native.topk_span_kl import Launcher

__all__ = ["backward", "forward", "forward_backward", "new_logits"]


def _run(device: torch.device, arguments: dict[str, Any]) -> None:
    extension = load("cuda")
    size = extension.topk_span_kl_scratch_bytes(rows=arguments["rows"])
    scratch = torch.empty(size, dtype=torch.uint8, device=device)  # as for the span KL, it may go to the next user
    extension.topk_span_kl(**arguments, scratch=scratch.data_ptr(), **placement(device))


_launcher = Launcher(_run)
forward, backward, forward_backward = _launcher.forward, _launcher.backward, _launcher.forward_backward
