"""Launcher of `csrc/cpu/span_ids.cpp`."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sadkernels.native import launcher


def span_ids_from_offsets(
    offsets: Tensor, starts: Tensor, ends: Tensor, kinds: Tensor, row_splits: Tensor, *, masks: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """See `sadkernels.reference.span_ids.span_ids_from_offsets`; takes CPU tensors."""
    return launcher.span_ids_from_offsets("cpu", _kernel, offsets, starts, ends, kinds, row_splits, masks)


def _kernel(extension: ModuleType, struct: Any, device: torch.device) -> None:
    # PyTorch reports one thread in a forked DataLoader worker.
    extension.span_ids_from_offsets(struct, torch.get_num_threads())
