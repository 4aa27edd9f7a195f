"""The weight of each row in the loss.

    weights[n] = lambda(kind(n)) / d,   d = n_r + n_a ("mean"),  n_kind ("span_mean"),  1 ("sum")

so that the loss is sum_n weights[n] value[n] (eq. 6). With "none" the weight of a supervised row is 1.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from sadkernels.spans import SpanKind


def row_weights(
    span_ids: Tensor,
    normalizer: Tensor | None,
    lambdas: tuple[float, float],
    reduction: str,
    shift: bool,
    read_all: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes kinds, weights and counts without a device synchronization.

    Args:
        span_ids: (...,) integers, N in all.
        normalizer: (2,) tensor that replaces the counts: equal entries for "mean", one per kind for "span_mean". None: the
            counts of `span_ids`; a count of 0 divides nothing, because no row has its weight.
        lambdas: Weights of reason and act rows, >= 0. A lambda of 0 gives weight 0 whatever the normalizer is.
        reduction: "mean", "span_mean", "sum" or "none".
        shift: Whether row t of (..., T) takes the id of row t + 1; the last row takes none.
        read_all: Whether rows of weight 0 are read too.
        dtype: Dtype of the weights.

    Returns:
        kinds (N,) uint8: 1 reason, 2 act, 0 any other id; the kinds of the rows that a kernel reads, 0 for the others (N,);
        weights (N,); counts (2,) int64 of reason and act rows.
    """
    of_kind = is_kind(span_ids, shift)
    reason, act = of_kind.view(torch.uint8).unbind()
    kinds, counts = torch.add(reason, act, alpha=SpanKind.ACT), of_kind.sum(1)
    if reduction == "none":
        return kinds, kinds, (kinds != 0).to(dtype), counts
    weight = torch.full((2,), lambdas[0], dtype=dtype, device=kinds.device)
    if lambdas[0] != lambdas[1]:
        weight[1] = lambdas[1]
    if reduction != "sum":
        if normalizer is None:
            normalizer = (counts if reduction == "span_mean" else counts.sum()).clamp(min=1)
        divided = weight / normalizer.to(dtype)
        weight = divided if all(lambdas) else torch.where(weight == 0, 0, divided)
    weights = torch.where(of_kind, weight[:, None], 0).sum(0)
    return kinds, kinds if read_all else kinds * (weights != 0), weights, counts


def is_kind(span_ids: Tensor, shift: bool = False) -> Tensor:
    """(2, N) bool: whether each row is reason, and whether it is act."""
    if shift:  # the last slice keeps rows of 0 tokens empty
        span_ids = torch.nn.functional.pad(span_ids[..., 1:], (0, 1))[..., : span_ids.shape[-1]]
    return span_ids.reshape(-1) == _kinds(span_ids.device)


@functools.cache
def _kinds(device: torch.device) -> Tensor:
    """(2, 1): the ids of reason and act."""
    return torch.tensor([[SpanKind.REASON], [SpanKind.ACT]], device=device)
