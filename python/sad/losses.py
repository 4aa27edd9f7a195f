"""The losses of structured agent distillation, drop-in: tensors in, a scalar out, on any backend."""

from __future__ import annotations

import torch
from torch import Tensor

from sadkernels import checks
from sadkernels.kinds import SpanKind
from sadkernels.ops.linear_span_kl import fused_linear_span_kl
from sadkernels.ops.linear_topk_span_kl import fused_linear_topk_span_kl
from sadkernels.ops.span_kl import fused_span_kl
from sadkernels.ops.topk_span_kl import fused_span_ce, fused_topk_span_kl
from sadkernels.stats import KindStats, SpanStats

__all__ = [
    "KindStats",
    "SpanStats",
    "fused_linear_span_kl",
    "fused_linear_topk_span_kl",
    "fused_span_ce",
    "fused_span_kl",
    "fused_topk_span_kl",
    "span_ids_from_masks",
]


def span_ids_from_masks(reason_mask: Tensor, act_mask: Tensor) -> Tensor:
    """The paper's two binary masks as one id per token.

    Args:
        reason_mask: m_r, bool or 0/1 integers, any shape.
        act_mask: m_a, same shape and device.

    Returns:
        uint8 of the masks' shape: 0 none, 1 reason, 2 act.

    Raises:
        ValueError: Shapes or devices differ, a mask holds something other than 0 and 1, or a token is in both masks
            (the method requires m_r(t) + m_a(t) <= 1, section 3.3). Finding out waits for the device.
        TypeError: A mask is not a tensor of bools or integers.
    """
    masks = []
    for name, mask in (("reason_mask", reason_mask), ("act_mask", act_mask)):
        if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            checks.fail(name, "a bool or integer tensor", got, "Compare it: `mask > 0`.", TypeError)
        if mask.shape != reason_mask.shape or mask.device != reason_mask.device:
            got = f"{tuple(mask.shape)} on {mask.device}"
            expected = f"shape {tuple(reason_mask.shape)} on {reason_mask.device}, like reason_mask"
            checks.fail(name, expected, got, "Build both masks from the same tokens.")
        if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
            checks.fail(name, "only 0 and 1", "other values", "Compare it: `mask > 0`.")
        masks.append(mask != 0)
    both = int((masks[0] & masks[1]).sum())
    if both:
        checks.fail("act_mask", "no token that is also in reason_mask", f"{both} such tokens", "Give each token one span.")
    return masks[0].to(torch.uint8) * SpanKind.REASON + masks[1].to(torch.uint8) * SpanKind.ACT
