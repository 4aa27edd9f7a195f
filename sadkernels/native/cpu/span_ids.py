"""Launcher of `csrc/cpu/span_ids.cpp`."""

from __future__ import annotations

import torch
from torch import Tensor

from sadkernels.native import params
from sadkernels.native.extension import load


def span_ids_from_offsets(
    offsets: Tensor, starts: Tensor, ends: Tensor, kinds: Tensor, row_splits: Tensor, *, masks: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """As `sadkernels.reference.span_ids.span_ids_from_offsets`, for CPU tensors."""
    spans = [x.contiguous() for x in (offsets, starts, ends, kinds, row_splits)]
    labels = params.Labels.for_tokens(offsets, masks)
    load("cpu").span_ids_from_offsets(
        **params.span_ids_params(*spans, labels), threads=torch.get_num_threads()
    )  # one thread in a forked DataLoader worker
    return (labels.m_r, labels.m_a) if masks else labels.ids
