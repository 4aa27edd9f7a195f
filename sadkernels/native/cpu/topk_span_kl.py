"""Launcher of `csrc/cpu/topk_span_kl.cpp`. `sadkernels.reference.topk_span_kl` defines every function here."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from sadkernels.native import params
from sadkernels.native.cpu.span_kl import instruction_set, new_logits
from sadkernels.native.launcher import Launcher, new_topk_values

__all__ = ["backward", "forward", "forward_backward", "new_logits"]


def _kernel(extension: ModuleType, struct: Any, device: torch.device) -> None:
    extension.topk_span_kl(struct, torch.get_num_threads(), instruction_set())


_launcher = Launcher("cpu", _kernel, params.topk_span_kl_params, new_topk_values)
forward, backward, forward_backward = _launcher.forward, _launcher.backward, _launcher.forward_backward
