"""The weight of each row in the loss, and the reduction of row values to the loss and its statistics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels import backends
from sadkernels.divergence import RowValues
from sadkernels.tokens import Tokens


class LossOptions(NamedTuple):
    """The options that every loss has.

    Attributes:
        lambda_reason: Weight of the reasoning tokens, >= 0.
        lambda_act: Weight of the action tokens, >= 0.
        lambda_observe: Weight of the observation tokens, >= 0; with 0 they are as tokens without a span.
        reduction: One of `sadkernels.tokens.REDUCTIONS`.
        shift: Whether row t of (..., T) stands for token t + 1.
        stats: Whether the loss also returns statistics.
        inplace: Whether the gradient overwrites the student's logits.
        backend: The backend that computes the loss; never "auto".
    """

    lambda_reason: float
    lambda_act: float
    lambda_observe: float
    reduction: str
    shift: bool
    stats: bool
    inplace: bool
    backend: str


class RowWeights(NamedTuple):
    """The part that each of N rows has in the loss.

    Attributes:
        kinds: (N,) uint8, the span kind after `shift`; 0 for rows that are not supervised.
        read: (N,) uint8, the kinds of the rows that a kernel reads, 0 for the others. A row of weight 0 is counted but not
            read, unless its value or its statistics are returned.
        weights: (N,), the loss is sum_n weights[n] value[n].
        counts: (3,) int64, the number of reason, act and observe rows.
    """

    kinds: Tensor
    read: Tensor
    weights: Tensor
    counts: Tensor

    def times(self, upstream: Tensor) -> RowWeights:
        """The weights times the upstream gradient, a scalar or (...,); rows whose product is 0 are not read."""
        scaled = torch.where(self.weights != 0, self.weights * upstream.reshape(-1).to(self.weights.dtype), 0)
        return self._replace(weights=scaled, read=self.kinds * (scaled != 0))

    def part(self, place: slice) -> RowWeights:
        """The weights of neighboring rows, as views; the counts stay those of all rows."""
        return RowWeights(self.kinds[place], self.read[place], self.weights[place], self.counts)

    @property
    def weighted(self) -> Tensor:
        """(N,) uint8, not 0 for the rows whose weight is not 0: all others have the gradient 0."""
        return (self.weights != 0).view(torch.uint8)

    def select(self, rows: Tensor) -> RowWeights:
        """The weights of some rows, given by their numbers (M,); the counts stay those of all rows."""
        return RowWeights(self.kinds[rows], self.read[rows], self.weights[rows], self.counts)


def row_weights(tokens: Tokens, o: LossOptions, dtype: torch.dtype) -> RowWeights:
    """The weights of all rows; see `sadkernels.reference.row_weights`."""
    kernel = backends.implementation(_backend(o, tokens.span_ids.device, dtype), "row_weights")
    lambdas, read_all = (o.lambda_reason, o.lambda_act, o.lambda_observe), o.stats or o.reduction == "none"
    return RowWeights(*kernel.row_weights(tokens, lambdas, o.reduction, o.shift, read_all, dtype))


def loss_and_sums(values: RowValues, rows: RowWeights, o: LossOptions) -> tuple[Tensor, Tensor]:
    """The weighted sum of the values, and the statistics (3, 4); see `sadkernels.reference.row_weights.row_sums`."""
    backend = _backend(o, rows.weights.device, rows.weights.dtype)
    kernel = backends.implementation("triton" if backend == "triton" else "reference", "row_weights")
    return kernel.row_sums(values, rows.weights, rows.kinds)


def _backend(o: LossOptions, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that computes weights and sums. "cuda" uses those of "triton", or of "reference" without Triton."""
    if o.backend == "cpu":
        return "cpu"
    if dtype != torch.float32 or o.reduction == "turn_mean":
        return "reference"
    if o.backend == "cuda" and backends.why_not("triton", "row_weights", device, dtype) is not None:
        return "reference"
    return "triton" if o.backend in ("triton", "cuda") else "reference"


def fake_results(span_ids: Tensor, o: LossOptions, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, sums and counts with the shapes and dtypes of the real ones; `dtype` is that of the loss."""
    loss = span_ids.new_empty(span_ids.shape if o.reduction == "none" else (), dtype=dtype)
    sums = span_ids.new_empty((3 if o.stats else 0, 4), dtype=dtype)
    return loss, sums, span_ids.new_empty((3,), dtype=torch.int64)
