"""The weight of each token in the loss: from the data, from its turn, from the teacher, or from the divergence of its turn.

All of them are one factor per token, `token_weights` of the loss functions. The collator multiplies those that it knows
(`turn_weights`); the loss of a batch multiplies those that need the models (`StepWeights`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sad.trajectories.spans import is_supervised, supervised_kinds
from sadkernels.turns import number_runs, writers

TURN_BALANCES = ("none", "equal", "decay")
TOKEN_WEIGHTINGS = ("none", "confidence", "step_divergence")
_EPSILON = 1e-6  # of SOD, in nats


def turn_weights(
    span_ids: Tensor, given: Tensor | None, turn_ids: Tensor | None, half_life: float | None, observe: bool
) -> Tensor:
    """Returns weights with which every turn counts alike, or less the later it is.

        w(t) = g(k) u(t) / sum of u over the supervised tokens of turn k,   g(k) = 1, or 2^(-k / half_life)

    k counts the turns of an example that have a supervised token, from 0. The weighted mean over tokens is then the mean
    over turns, weighted by g, of each turn's mean.

    Args:
        span_ids: (B, T) integers.
        given: (B, T) weights u of the data; None for 1.
        turn_ids: (B, T) integers: a turn is a run of equal ids. None: a run of tokens of one writer.
        half_life: Number of turns after which the weight is half; None for g = 1.
        observe: Whether observation tokens are supervised.

    Returns:
        (B, T) float32; 0 for tokens without a loss.
    """
    unit = _predicted(span_ids, observe).double() * (1.0 if given is None else given.double())
    turns = number_runs(writers(span_ids, observe) if turn_ids is None else turn_ids)
    total = _sums(unit, turns)
    weights = torch.where(unit > 0, unit / total[turns].clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    if half_life is not None:
        starts = F.pad(turns[:, 1:] != turns[:, :-1], (1, 0), value=True)
        counted = (starts & (total[turns] > 0)).cumsum(1) - 1
        weights = weights * torch.exp2(-counted.clamp(min=0).double() / half_life)
    return weights.float()


class StepWeights:
    """The factor of `token_weighting` for the batches of a training.

    With "confidence" it is

        w(t) = 1 - H(p_T(x_t)) / log V = KL(p_T || uniform) / log V,

    the teacher's certainty, from 0 (it has no preference) to 1 (it knows). With "step_divergence" it is, for all tokens of
    the k-th turn of an example,

        w_k = min(prod_(u < k) (d_u + eps) / (d_(u+1) + eps), limit) = min((d_1 + eps) / (d_k + eps), limit),

    where d_k is the mean divergence of the turn's supervised tokens (SOD, arXiv:2605.07725, eqs. 6 and 7; there d_k is the
    mean of |log p_S - log p_T| of the written tokens). A turn on which student and teacher diverge more than on the first
    one counts less.

    Args:
        weighting: "none", "confidence" or "step_divergence".
        limit: Largest w_k.
        observe: Whether observation tokens are supervised.
        backend: Backend of the loss functions.
    """

    def __init__(self, weighting: str, limit: float, observe: bool, backend: str) -> None:
        self._weighting, self._limit, self._observe, self._backend = weighting, limit, observe, backend

    def of(
        self,
        inputs: Mapping[str, Tensor],
        training: bool,
        *,
        certainty: Callable[[dict[str, Any]], Tensor],
        divergence: Callable[[], Tensor],
    ) -> Tensor | None:
        """Returns the weights of a batch (B, T), or None if they are all 1. Does not synchronize the device.

        Args:
            inputs: The batch.
            training: Whether the model is in training mode. Without it only the weights of the collator count.
            certainty: Computes 1 - H / log V of each row (B, T), given the options of the loss function.
            divergence: Computes the divergence of each row (B, T). Row t predicts token t + 1.
        """
        given = inputs.get("token_weights")
        if not training or self._weighting == "none":
            return given
        with torch.no_grad():
            if self._weighting == "confidence":
                options = {"shift": True, "reduction": "none", "backend": self._backend}
                found = _of_tokens(certainty(options | {"lambda_observe": float(self._observe)})).clamp(0.0, 1.0)
            else:
                found = self._by_divergence(inputs, _of_tokens(divergence()))
            found = found.nan_to_num(nan=1.0)  # the loss of such a token is NaN by itself
            return found if given is None else found * given

    def _by_divergence(self, inputs: Mapping[str, Tensor], divergence: Tensor) -> Tensor:
        span_ids, turn_ids, given = inputs["span_ids"], inputs.get("turn_ids"), inputs.get("token_weights")
        counted = _predicted(span_ids, self._observe)
        counted = counted if given is None else counted & (given > 0)
        turns = number_runs(writers(span_ids, self._observe) if turn_ids is None else turn_ids)
        total = _sums(torch.where(counted, divergence, 0.0).double(), turns)
        mean = (total / _sums(counted.double(), turns).clamp(min=1.0))[turns]
        first = mean.gather(1, counted.to(torch.uint8).argmax(1, keepdim=True))
        return ((first + _EPSILON) / (mean + _EPSILON)).clamp(max=self._limit).to(divergence.dtype)


def weight_sum(inputs: Mapping[str, Tensor], observe: bool) -> Tensor:
    """Returns the divisor of the loss of a batch: its supervised tokens, each with its weight from the collator."""
    counted = _predicted(inputs["span_ids"], observe)
    weights = inputs.get("token_weights")
    if weights is None:
        return counted.sum()
    return torch.where(counted, weights.double() if weights.device.type != "mps" else weights, 0.0).sum()


def weights_by_kind(inputs: Mapping[str, Tensor], weights: Tensor, observe: bool) -> tuple[Tensor, Tensor]:
    """Returns the sums of the weights (B, T) of reasoning, action and observation tokens, and their numbers (3,)."""
    counted = _predicted(inputs["span_ids"], observe)
    of_kind = torch.stack([counted & (inputs["span_ids"] == kind) for kind in supervised_kinds(observe=True)]).flatten(1)
    return torch.where(of_kind, weights.flatten(), 0.0).sum(1), of_kind.sum(1)


def without_unseen(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a batch without the labels of tokens whose predecessor is padding: no row of real text predicts them.

    With padding on the right there are none, and `sad.SpanCollator`, which pads there, adds `loss_rows`.
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.dim() != 2 or "loss_rows" in inputs:
        return inputs
    seen = F.pad(mask[:, :-1] > 0, (1, 0))
    return {**inputs, "span_ids": torch.where(seen, inputs["span_ids"], 0)}


def log_columns(columns: int) -> float:
    """Returns log V, by which a divergence from the uniform distribution over V columns is at most 1."""
    return math.log(max(columns, 2))


def _predicted(span_ids: Tensor, observe: bool) -> Tensor:
    """Returns whether each token has a loss: it is supervised, and not the first, which no row predicts."""
    found = is_supervised(span_ids, observe)
    found[:, 0] = False
    return found


def _of_tokens(rows: Tensor) -> Tensor:
    """Returns the values of tokens (B, T) from those of the rows that predict them; 0 for the first token."""
    return F.pad(rows[:, :-1], (1, 0))


def _sums(values: Tensor, turns: Tensor) -> Tensor:
    """Returns the sum of each turn, at the turn's number, in the order of the tokens: the same bits on every run."""
    return torch.zeros(values.numel(), dtype=values.dtype, device=values.device).index_put_(
        (turns.flatten(),), values.flatten(), accumulate=True
    )
