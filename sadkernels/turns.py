"""The turns of a sequence of tokens: runs of tokens that one side wrote, or runs of given ids."""

from __future__ import annotations

import torch
from torch import Tensor

from sadkernels.spans import SpanKind


def writers(span_ids: Tensor, observe: bool) -> Tensor:
    """Who wrote each token (...,): 1 the model (reason, act), 2 the environment (observe, if it counts), 0: no span."""
    model = (span_ids == SpanKind.REASON) | (span_ids == SpanKind.ACT)
    return model + 2 * (span_ids == SpanKind.OBSERVE) if observe else model.to(torch.uint8)


def number_runs(ids: Tensor) -> Tensor:
    """The number of each token's run of equal ids in the last dimension, (...,) int64, counted from 0 through all tokens."""
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[..., 1:] = ids[..., 1:] != ids[..., :-1]
    return starts.reshape(-1).cumsum(0).view(ids.shape) - 1
