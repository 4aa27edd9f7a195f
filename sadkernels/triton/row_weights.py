"""The weights of all rows, and the sums over all rows, in one launch each.

One program does each, because a weight depends on all rows. Sums are float64 in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sadkernels.divergence import RowValues
from sadkernels.tokens import REDUCTIONS, Tokens
from sadkernels.triton.launch import Launch

_BLOCK, _WARPS = 2048, 16
_NAMES = ["span_ids", "token_weights", "normalizer", "kinds", "read", "weights", "counts"]
_SUMMED = ["value", "weights", "kinds", "entropies", "argmax", "loss", "sums"]


@triton.jit
def _load_tokens(span_ids, token_weights, row, exists, tokens, OBSERVE: tl.constexpr, SHIFT: tl.constexpr):
    """Kind (int32, 0 none) and weight (float64) of the token of each row; with SHIFT that of the next row's token."""
    has_token = exists
    if SHIFT:
        has_token = has_token & (row % tokens != tokens - 1)
        row += 1
    ids = tl.load(span_ids + row, mask=has_token, other=0)
    kind = tl.where(ids == 1, 1, tl.where(ids == 2, 2, 0))
    if OBSERVE:
        kind = tl.where(ids == 3, 3, kind)
    weight = tl.full(row.shape, 1.0, tl.float64)
    if token_weights is not None:
        weight = tl.load(token_weights + row, mask=has_token, other=0.0).to(tl.float64)
        kind = tl.where(weight > 0.0, kind, 0)
    return kind, weight


@triton.jit
def _divided(weight, divisor):
    """A lambda divided by its divisor; a lambda of 0 stays 0, and a divisor of 0 divides nothing."""
    return tl.where(weight == 0.0, 0.0, weight / tl.where(divisor == 0.0, 1.0, divisor))


@triton.jit(do_not_specialize=["n_rows", "tokens"], do_not_specialize_on_alignment=_NAMES)
def row_weights_kernel(
    span_ids,
    token_weights,
    normalizer,
    kinds,
    read,
    weights,
    counts,
    n_rows: tl.int32,
    tokens: tl.int32,
    lambda_reason: tl.float32,
    lambda_act: tl.float32,
    lambda_observe: tl.float32,
    REDUCTION: tl.constexpr,
    OBSERVE: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes kinds, weights (N,) and counts (3,), and `read` (N,) unless it is None."""
    none, zero = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.float64)
    n_reason, n_act, n_observe = none, none, none
    of_reason, of_act, of_observe = zero, zero, zero
    for first in range(0, n_rows, BLOCK):
        row = first + tl.arange(0, BLOCK)
        kind, weight = _load_tokens(span_ids, token_weights, row, row < n_rows, tokens, OBSERVE, SHIFT)
        n_reason += (kind == 1).to(tl.int32)
        n_act += (kind == 2).to(tl.int32)
        n_observe += (kind == 3).to(tl.int32)
        of_reason += tl.where(kind == 1, weight, 0.0)
        of_act += tl.where(kind == 2, weight, 0.0)
        of_observe += tl.where(kind == 3, weight, 0.0)
    tl.store(counts, tl.sum(n_reason, axis=0).to(tl.int64))
    tl.store(counts + 1, tl.sum(n_act, axis=0).to(tl.int64))
    tl.store(counts + 2, tl.sum(n_observe, axis=0).to(tl.int64))
    one = tl.full([], 1.0, tl.float64)
    by_reason, by_act, by_observe = lambda_reason * one, lambda_act * one, lambda_observe * one
    if REDUCTION == "mean" or REDUCTION == "span_mean":
        reason, act, observe = tl.sum(of_reason, axis=0), tl.sum(of_act, axis=0), tl.sum(of_observe, axis=0)
        if REDUCTION == "mean":
            reason += act + observe
            act, observe = reason, reason
        if normalizer is not None:
            by_reason = tl.where(by_reason == 0.0, 0.0, by_reason / tl.load(normalizer))
            by_act = tl.where(by_act == 0.0, 0.0, by_act / tl.load(normalizer + 1))
            by_observe = tl.where(by_observe == 0.0, 0.0, by_observe / tl.load(normalizer + 2))
        else:
            by_reason, by_act, by_observe = _divided(by_reason, reason), _divided(by_act, act), _divided(by_observe, observe)
    for first in range(0, n_rows, BLOCK):
        row = first + tl.arange(0, BLOCK)
        exists = row < n_rows
        kind, weight = _load_tokens(span_ids, token_weights, row, exists, tokens, OBSERVE, SHIFT)
        of_kind = tl.where(kind == 1, by_reason, tl.where(kind == 2, by_act, tl.where(kind == 3, by_observe, 0.0)))
        if REDUCTION == "none":
            of_row = tl.where(kind != 0, 1.0, 0.0)
        else:
            of_row = tl.where(of_kind == 0.0, 0.0, of_kind * weight).to(tl.float32)
        tl.store(kinds + row, kind.to(tl.uint8), mask=exists)
        tl.store(weights + row, of_row, mask=exists)
        if read is not None:
            tl.store(read + row, tl.where(of_row == 0.0, 0, kind).to(tl.uint8), mask=exists)


def row_weights(
    tokens: Tokens, lambdas: tuple[float, float, float], reduction: str, shift: bool, read_all: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `sadkernels.reference.row_weights.row_weights`; gives float32 weights. Not for "turn_mean"."""
    assert reduction in REDUCTIONS and reduction != "turn_mean" and dtype == torch.float32
    outputs, launch = row_weights_launch(tokens, lambdas, reduction, shift, read_all or reduction == "none")
    launch.run(tokens.span_ids.device)
    return outputs


def row_weights_launch(
    tokens: Tokens, lambdas: tuple[float, float, float], reduction: str, shift: bool, read_all: bool
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Launch]:
    """Returns the results of `row_weights` and the launch that computes them."""
    span_ids = tokens.span_ids.contiguous()
    n, device = span_ids.numel(), span_ids.device
    kinds, counts = torch.empty(n, dtype=torch.uint8, device=device), torch.empty(3, dtype=torch.int64, device=device)
    read = None if read_all else torch.empty_like(kinds)
    weights = torch.empty(n, device=device)
    values = {
        "span_ids": span_ids,
        "token_weights": None if tokens.token_weights is None else tokens.token_weights.contiguous(),
        "normalizer": None if tokens.normalizer is None else tokens.normalizer.double().contiguous(),
        "kinds": kinds,
        "read": read,
        "weights": weights,
        "counts": counts,
        "n_rows": n,
        "tokens": span_ids.shape[-1] if shift else 1,
        "lambda_reason": lambdas[0],
        "lambda_act": lambdas[1],
        "lambda_observe": lambdas[2],
        "REDUCTION": reduction,
        "OBSERVE": lambdas[2] > 0.0,
        "SHIFT": shift,
        "BLOCK": _BLOCK,
    }
    outputs = kinds, kinds if read is None else read, weights, counts
    return outputs, Launch(row_weights_kernel, 1, values, warps=_WARPS)


@triton.jit(do_not_specialize=["n_rows"], do_not_specialize_on_alignment=_SUMMED)
def row_sums_kernel(
    value, weights, kinds, entropies, argmax, loss, sums, n_rows: tl.int32, STATS: tl.constexpr, BLOCK: tl.constexpr
):
    """Program 0 writes the loss, program k the four sums of kind k."""
    kind = tl.program_id(0)
    of_value = tl.zeros([BLOCK], tl.float64)
    of_teacher, of_student, agreements = of_value, of_value, of_value
    for first in range(0, n_rows, BLOCK):
        row = first + tl.arange(0, BLOCK)
        exists = row < n_rows
        if kind == 0:
            weight = tl.load(weights + row, mask=exists, other=0.0)
            counted = weight != 0.0
            of_value += tl.where(counted, weight.to(tl.float64) * tl.load(value + row, mask=counted, other=0.0), 0.0)
        else:
            of_kind = exists & (tl.load(kinds + row, mask=exists, other=0) == kind)
            if STATS:
                of_value += tl.load(value + row, mask=of_kind, other=0.0).to(tl.float64)
                of_teacher += tl.load(entropies + row, mask=of_kind, other=0.0).to(tl.float64)
                of_student += tl.load(entropies + n_rows + row, mask=of_kind, other=0.0).to(tl.float64)
                best = tl.load(argmax + row, mask=of_kind, other=0)
                agree = of_kind & (best == tl.load(argmax + n_rows + row, mask=of_kind, other=1))
                agreements += agree.to(tl.float64)
    if kind == 0:
        tl.store(loss, tl.sum(of_value, axis=0).to(tl.float32))
    else:
        out = sums + 4 * (kind - 1)
        tl.store(out, tl.sum(of_value, axis=0).to(tl.float32))
        tl.store(out + 1, tl.sum(of_teacher, axis=0).to(tl.float32))
        tl.store(out + 2, tl.sum(of_student, axis=0).to(tl.float32))
        tl.store(out + 3, tl.sum(agreements, axis=0).to(tl.float32))


def row_sums(values: RowValues, weights: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """See `sadkernels.reference.row_weights.row_sums`; takes float32 values."""
    outputs, launch = row_sums_launch(values, weights, kinds)
    launch.run(kinds.device)
    return outputs


def row_sums_launch(values: RowValues, weights: Tensor, kinds: Tensor) -> tuple[tuple[Tensor, Tensor], Launch]:
    """Returns the results of `row_sums` and the launch that computes them."""
    stats = values.entropies is not None
    loss, sums = weights.new_empty(()), weights.new_empty((3 if stats else 0, 4))
    arguments = {
        "value": values.value,
        "weights": weights,
        "kinds": kinds,
        "entropies": values.entropies,
        "argmax": values.argmax,
        "loss": loss,
        "sums": sums,
        "n_rows": kinds.numel(),
        "STATS": stats,
        "BLOCK": _BLOCK,
    }
    return (loss, sums), Launch(row_sums_kernel, 4 if stats else 1, arguments, warps=_WARPS)
