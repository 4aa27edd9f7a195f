"""The losses of structured agent distillation: tensors in, a scalar out, on any backend."""

from sadkernels.ops.linear_span_kl import fused_linear_span_kl
from sadkernels.ops.linear_topk_span_kl import fused_linear_topk_span_kl
from sadkernels.ops.span_ids import span_ids_from_masks
from sadkernels.ops.span_kl import fused_span_kl
from sadkernels.ops.topk_span_kl import fused_span_ce, fused_topk_span_kl
from sadkernels.spans import KindStats, SpanStats

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
