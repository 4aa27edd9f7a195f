"""The weight of each row in the loss.

With the weight w(n) of a token (1 by default), the weight of row n is

    lambda(kind(n)) w(n) / d,   d = sum_m w(m) of all supervised rows m        "mean"
                                    sum_m w(m) of the rows m of n's kind       "span_mean"
                                    sum_m w(m) of the rows m of n's turn, times the number of turns   "turn_mean"
                                    1                                          "sum"

so that the loss is sum_n weights[n] value[n] (eq. 6). With "none" the weight of a supervised row is 1.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from sadkernels.divergence import RowValues
from sadkernels.spans import SpanKind
from sadkernels.tokens import Tokens
from sadkernels.turns import number_runs, writers


def row_weights(
    tokens: Tokens, lambdas: tuple[float, float, float], reduction: str, shift: bool, read_all: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes kinds, weights and counts without a device synchronization.

    Args:
        tokens: The tokens.
        lambdas: Weights of reason, act and observe rows, >= 0. A lambda of 0 gives weight 0 whatever the normalizer is; with
            one of 0 for observe, its rows are as rows without a span.
        reduction: "mean", "span_mean", "turn_mean", "sum" or "none".
        shift: Whether row t of (..., T) takes span id, weight and turn of token t + 1; the last row takes none.
        read_all: Whether rows of weight 0 that have a kind are read too.
        dtype: Dtype of the weights.

    Returns:
        kinds (N,) uint8, 0 for rows without a span; the kinds of the rows that a kernel reads, 0 for the others (N,);
        weights (N,); counts (3,) int64 of reason, act and observe rows.
    """
    of_kind, unit = is_kind(tokens.span_ids, shift, observe=lambdas[2] > 0.0), None
    turns = _turns(tokens, shift, lambdas[2] > 0.0) if reduction == "turn_mean" else None
    if tokens.token_weights is not None:
        unit = _of_rows(tokens.token_weights, shift, fill=0).double()
        of_kind = of_kind & (unit > 0.0)
    kinds, counts = _kinds(of_kind), F.pad(of_kind.sum(1), (0, len(lambdas) - len(of_kind)))
    if reduction == "none":
        return kinds, kinds, (kinds != 0).to(dtype), counts
    exact = dtype if unit is None and turns is None else torch.float64
    weight = torch.full((len(of_kind), 1), lambdas[0], dtype=exact, device=of_kind.device)
    for kind, value in enumerate(lambdas[: len(of_kind)]):
        if value != lambdas[0]:
            weight[kind] = value
    if reduction != "sum":
        divided = weight / _divisors(reduction, of_kind, unit, turns, tokens.normalizer).to(exact)
        weight = divided if all(lambdas[: len(of_kind)]) else torch.where(weight == 0.0, 0.0, divided)
    weights = torch.where(of_kind, weight, 0.0).sum(0)
    weights = (weights if unit is None else weights * unit).to(dtype)
    return kinds, kinds if read_all else kinds * (weights != 0.0), weights, counts


def row_sums(values: RowValues, weights: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """The loss sum_n weights[n] value[n] and the statistics of each kind, without a device synchronization.

    Args:
        values: The values of N rows. A row of weight 0 may have any value.
        weights: (N,) the weights.
        kinds: (N,) uint8.

    Returns:
        The loss, and (3, 4): for reason, act and observe rows the sums of divergence, teacher entropy, student entropy and
        agreements; (0, 4) if the values have no statistics.
    """
    if values.entropies is None:
        return (weights * values.value).sum(), weights.new_empty((0, 4))
    agree = values.argmax[0] == values.argmax[1]
    by_row = torch.cat([values.value[None], values.entropies, agree[None]])
    loss = torch.where(weights != 0.0, weights * values.value, 0.0).sum()  # a row of weight 0 was read and may be NaN
    return loss, torch.where(is_kind(kinds)[:, None], by_row, 0.0).sum(-1)


def is_kind(span_ids: Tensor, shift: bool = False, observe: bool = True) -> Tensor:
    """(3, N) bool: whether each row is reason, act, observe; without the last one (2, N)."""
    return _of_rows(span_ids, shift, fill=0) == _kind_ids(span_ids.device)[: 3 if observe else 2]


def _of_rows(tokens: Tensor, shift: bool, fill: int) -> Tensor:
    """(N,): the entries of the tokens (..., T) that the rows stand for; `fill` for the row of a last token."""
    if shift:  # the last slice keeps rows of 0 tokens empty
        tokens = F.pad(tokens[..., 1:], (0, 1), value=fill)[..., : tokens.shape[-1]]
    return tokens.reshape(-1)


def _kinds(of_kind: Tensor) -> Tensor:
    """(N,) uint8 from (2 or 3, N) bool."""
    reason, act, *observe = of_kind.view(torch.uint8).unbind()
    kinds = torch.add(reason, act, alpha=SpanKind.ACT)
    return torch.add(kinds, observe[0], alpha=SpanKind.OBSERVE) if observe else kinds


def _turns(tokens: Tokens, shift: bool, observe: bool) -> Tensor:
    """(N,) int64, the number of each row's turn, counted from 0 through all rows."""
    turn_ids = writers(tokens.span_ids, observe) if tokens.turn_ids is None else tokens.turn_ids
    rows = _of_rows(turn_ids, shift, fill=0).view(tokens.span_ids.shape or (1,))
    return number_runs(rows).reshape(-1)


def _divisors(
    reduction: str, of_kind: Tensor, unit: Tensor | None, turns: Tensor | None, normalizer: Tensor | None
) -> Tensor:
    """d of the module's docstring: (1,) or (kinds, 1), or (N,) for "turn_mean"; 1 instead of 0."""
    if turns is not None:
        supervised = of_kind.any(0).double()
        total = torch.zeros_like(supervised)  # float64 sums in the order of the rows
        total.index_put_((turns,), supervised if unit is None else unit * supervised, accumulate=True)
        return total[turns] * ((total > 0.0).sum() if normalizer is None else normalizer[0])
    if normalizer is not None:
        return normalizer[: len(of_kind), None] if reduction == "span_mean" else normalizer[:1]
    total = (of_kind if unit is None else unit * of_kind).sum(1, keepdim=True)
    total = total if reduction == "span_mean" else total.sum(0)
    return total.clamp(min=1) if unit is None else torch.where(total == 0.0, 1.0, total)


@functools.cache
def _kind_ids(device: torch.device) -> Tensor:
    """(3, 1): the ids of reason, act and observe."""
    return torch.tensor([[SpanKind.REASON], [SpanKind.ACT], [SpanKind.OBSERVE]], device=device)
