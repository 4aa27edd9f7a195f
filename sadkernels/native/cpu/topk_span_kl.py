"""Launcher of `csrc/cpu/topk_span_kl.cpp`. `sadkernels.reference.topk_span_kl` defines every function here."""

from __future__ import annotations

from typing import Any

import torch

from sadkernels.native.cpu.span_kl import new_logits, where
from sadkernels.native.extension import load
from sadkernels.native.topk_span_kl import Launcher

__all__ = ["backward", "forward", "forward_backward", "new_logits"]


def _run(device: torch.device, arguments: dict[str, Any]) -> None:
    load("cpu").topk_span_kl(**arguments, **where())


_launcher = Launcher(_run)
forward, backward, forward_backward = _launcher.forward, _launcher.backward, _launcher.forward_backward
