"""Launcher of `csrc/cpu/span_ids.cpp`."""

from __future__ import annotations

import torch
from torch import Tensor

from sadkernels.native.extension import load


def span_ids_from_offsets(offsets: Tensor, starts: Tensor, ends: Tensor, kinds: Tensor, row_splits: Tensor) -> Tensor:
    """As `sadkernels.reference.span_ids.span_ids_from_offsets`, for CPU tensors."""
    batch, tokens = offsets.shape[:2]
    ids = torch.empty((batch, tokens), dtype=torch.uint8)
    offsets, starts, ends, kinds, row_splits = (x.contiguous() for x in (offsets, starts, ends, kinds, row_splits))
    load("cpu").span_ids_from_offsets(
        offsets=offsets.data_ptr(),
        batch=batch,
        tokens=tokens,
        starts=starts.data_ptr(),
        ends=ends.data_ptr(),
        kinds=kinds.data_ptr(),
        row_splits=row_splits.data_ptr(),
        ids=ids.data_ptr(),
        threads=torch.get_num_threads(),  # one inside a forked DataLoader worker
    )
    return ids
