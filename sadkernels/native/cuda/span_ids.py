"""Launcher of `csrc/cuda/span_ids.cu`."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sadkernels.native import launcher
from sadkernels.native.cuda.device import placement


def span_ids_from_offsets(
    offsets: Tensor, starts: Tensor, ends: Tensor, kinds: Tensor, row_splits: Tensor, *, masks: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """See `sadkernels.reference.span_ids.span_ids_from_offsets`; takes CUDA tensors."""
    return launcher.span_ids_from_offsets("cuda", _kernel, offsets, starts, ends, kinds, row_splits, masks)


def _kernel(extension: ModuleType, struct: Any, device: torch.device) -> None:
    extension.span_ids_from_offsets(struct, *placement(device))
