"""Softmaxes in float32 registers and powers of two: soft cap, running totals, log-sum-exp, entropy, argmax.

A kernel turns each logit x into a value y, and y into a power of two:

    y = x                     without a soft cap
    y = tanh(x tanh_scale)    with a soft cap (CAPPED)
    probability = 2^a / total, with a = y c - shift and total = sum 2^a

The launcher folds log2(e), 1 / T, and the logit scale or the cap into c (`sadkernels.triton.launch.logit_arguments`).

`shift` is the row's maximum of y c, rounded to an integer. So the powers stay near 1, and a change of the shift multiplies
a running total by an exact power of two. Shifts stay within +-3e38, so a row or block of only -inf has total 0 and not NaN.
Logits count as infinite from |y c| > 3.4e38 on.

The code calls `tl.fma` explicitly, because Triton's version decides if a * b + c is fused.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

NO_SHIFT = tl.constexpr(-3.0e38)
_TO_INTEGER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it leaves no bits for a fraction
_LN2 = tl.constexpr(0.6931471805599453)
_TANH_BRANCH = tl.constexpr(0.625)


class LogitRow(NamedTuple):
    """A row of logits in memory, and the constants that turn a logit into an exponent."""

    pointer: tl.tensor
    c: tl.tensor
    tanh_scale: tl.tensor
    CAPPED: tl.constexpr
    ALIGNED: tl.constexpr  # whether the row's groups start at multiples of 16 bytes where the student's do


class Softmax(NamedTuple):
    """The normalization of a row's softmax: probability = 2^(y c - shift) inverse_total."""

    shift: tl.tensor
    inverse_total: tl.tensor


@triton.jit
def tanh(u):
    """Returns tanh(u) to a few units in the last place, from one exponential and without a function call.

    The formula 1 - 2 / (1 + e^2u) loses digits near 0, so a polynomial replaces it there.
    """
    # (tanh(u) - u) / u^3 in powers of u^2 for |u| < 0.625: minimax polynomial, relative error of the result 4.4e-9
    z = u * u
    near = tl.fma(z, -0.005704985465854406, 0.02063908614218235)
    near = tl.fma(z, near, -0.05373971536755562)
    near = tl.fma(z, near, 0.13331441581249237)
    near = tl.fma(z, near, -0.3333328068256378)
    far = 1.0 - 2.0 / (1.0 + tl.exp2(u * 2.8853900817779268))  # 2 log2(e); NaN stays NaN, +-inf becomes +-1
    return tl.where(tl.abs(u) < _TANH_BRANCH, tl.fma(u * z, near, u), far)


@triton.jit
def apply_softcap(x, tanh_scale, exists, CAPPED: tl.constexpr):
    """Returns y in float32 for loaded logits x; lanes without a column keep -inf."""
    x = x.to(tl.float32)
    if CAPPED:
        x = tl.where(exists, tanh(x * tanh_scale), float("-inf"))
    return x


@triton.jit
def softcap_backward(g, y, CAPPED: tl.constexpr):
    """Multiplies a gradient by the slope 1 - y^2 of the tanh."""
    if CAPPED:
        g = g * tl.fma(-y, y, 1.0)
    return g


@triton.jit
def integer_shift(top):
    """Rounds `top` to the nearest integer (to a nearby float from 2^22 on) and keeps it finite."""
    return tl.minimum(tl.maximum((top + _TO_INTEGER) - _TO_INTEGER, -3.0e38), 3.0e38)


@triton.jit
def add_block(y, top, c, shift, total):
    """Adds a block y (GROUPS, GROUP) with group maxima `top` to the running shift and total of every group, (GROUPS,) each.

    One thread owns a group, so the maximum per group needs no exchange between threads, and GROUP columns share one
    correction of the total.
    """
    new_shift = tl.maximum(shift, integer_shift(top * c))
    block_total = tl.sum(tl.exp2(tl.fma(y, c, -new_shift[:, None])), axis=1)
    return new_shift, tl.fma(total, tl.exp2(shift - new_shift), block_total)


@triton.jit
def merge_totals(shift, total):
    """Merges the shifts and totals of parts into one, in a fixed order."""
    merged_shift = tl.max(shift, axis=0)
    return merged_shift, tl.sum(total * tl.exp2(shift - merged_shift), axis=0)


@triton.jit
def merge_groups_and_edges(shift, total, edges, c):
    """Merges the shifts and totals of a row's groups and the values y of its edges into one, in a fixed order."""
    row_shift = tl.maximum(tl.max(shift, axis=0), integer_shift(tl.max(edges, axis=0) * c))
    groups_total = tl.sum(total * tl.exp2(shift - row_shift), axis=0)
    return row_shift, groups_total + tl.sum(tl.exp2(tl.fma(edges, c, -row_shift)), axis=0)


@triton.jit
def log_sum_exp(shift, total):
    """Returns log(sum exp(z / T)) in nats."""
    return tl.fma(shift, _LN2, tl.log(total))


@triton.jit
def softmax_from_log_sum_exp(lse):
    """Returns the `Softmax` of a stored log-sum-exp, without losing digits of lse * log2(e)."""
    shift = integer_shift(lse * 1.4426950408889634)
    rest = tl.fma(lse, 1.4426950216293335, -shift) + lse * 1.925963033500e-08  # log2(e) as a sum of two floats
    return Softmax(shift, tl.exp2(-rest))


@triton.jit
def probabilities(y, c, softmax):
    """Returns the exponents a and the probabilities of columns y."""
    a = tl.fma(y, c, -softmax.shift)
    return a, tl.exp2(a) * softmax.inverse_total


@triton.jit
def mean_log2(probability, a, log2_inverse_total):
    """Returns sum probability * log2(probability) over the last axis; a column of probability 0 adds 0."""
    return tl.sum(probability * tl.maximum(a + log2_inverse_total, -1.0e30), axis=len(a.shape) - 1)


@triton.jit
def entropy(mean):
    """Returns the entropy in nats from `mean_log2`. The clamp removes a negative rounding error."""
    nats = -_LN2 * mean
    return tl.where(nats < 0.0, 0.0, nats)


@triton.jit
def track_argmax(x, head, first, best, best_column, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Returns the maximum of each group of x (GROUPS, GROUP), and the running maximum with its lowest column.

    NaN counts as the largest value.
    """
    x = tl.where(x == x, x, float("inf"))
    top = tl.max(x, axis=1)
    lane = tl.min(tl.where(x == top[:, None], tl.arange(0, GROUP)[None, :], GROUP), axis=1)
    better = top > best
    column = head + (first + tl.arange(0, GROUPS)) * GROUP + lane
    return top, tl.where(better, top, best), tl.where(better, column, best_column)


@triton.jit
def merge_argmax(best, column):
    """Returns the largest of `best` and the lowest column that has it; column 0 if all are -inf."""
    top = tl.max(best, axis=0)
    lowest = tl.min(tl.where(best == top, column, 2**31 - 1), axis=0)
    return top, tl.where(top == float("-inf"), 0, lowest)


@triton.jit
def row_argmax(best, best_column, edges, edge_column):
    """Returns the largest value of a row's groups and edges, and the lowest column that has it; column 0 if all are -inf."""
    edges = tl.where(edges == edges, edges, float("inf"))
    groups_top, groups_column = merge_argmax(best, best_column)
    edges_top, edges_column = merge_argmax(edges, edge_column)
    tie_column = tl.where(edges_top == groups_top, tl.minimum(groups_column, edges_column), groups_column)
    return tl.maximum(groups_top, edges_top), tl.where(edges_top > groups_top, edges_column, tie_column)
