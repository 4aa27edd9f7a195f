"""What a caller says about the tokens of a batch, for all losses."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

REDUCTIONS = ("mean", "span_mean", "turn_mean", "sum", "none")


class Tokens(NamedTuple):
    """Span, weight and turn of each token, and what the loss is divided by.

    Attributes:
        span_ids: (...,) integers, N in all.
        token_weights: (...,) floats >= 0, or None for 1. A token of weight 0 is as one without a span.
        turn_ids: (...,) integers for "turn_mean". A turn is a run of equal ids in the last dimension. None: a run of tokens
            that the model wrote (reason, act), or that the environment wrote (observe).
        normalizer: (3,), replaces the divisor: equal entries for "mean" and "turn_mean" (there the number of turns), one per
            kind for "span_mean". None: from the tokens. A divisor of 0 divides nothing, because no row has its weight.
    """

    span_ids: Tensor
    token_weights: Tensor | None = None
    turn_ids: Tensor | None = None
    normalizer: Tensor | None = None
