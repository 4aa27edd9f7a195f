"""Softmaxes in float32 registers and powers of two: running totals, log-sum-exps, entropies, argmax.

A row of logits x becomes a = x c - shift, and its softmax 2^a / total, total = sum 2^a, where c holds log2(e) / T and the
logit scale (or the cap, with x a tanh). `shift` is the row's maximum of x c rounded to an integer: so the powers stay near
1, and moving a running total to a new shift multiplies it by an exact power of two. `tl.fma` is spelled out: whether
a * b + c is fused depends on Triton's version.

Shifts stay within +-3e38. A row or block of nothing but -inf then has total 0, not NaN. Logits count as infinite from
|x c| > 3.4e38 on.
"""

from __future__ import annotations

import triton
import triton.language as tl

NO_SHIFT = tl.constexpr(-3.0e38)
_TO_INTEGER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it leaves no bits for a fraction
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def integer_shift(top):
    """`top` to the nearest integer (to a nearby float from 2^22 on), kept finite."""
    return tl.minimum(tl.maximum((top + _TO_INTEGER) - _TO_INTEGER, -3.0e38), 3.0e38)


@triton.jit
def add_groups(x, top, c, shift, total):
    """The running shift and total of every group, (GROUPS,) each, after a block x (GROUPS, GROUP) with maxima `top`.

    A maximum per group stays within a thread: no exchange between threads, and one correction for GROUP columns.
    """
    new_shift = tl.maximum(shift, integer_shift(top * c))
    block_total = tl.sum(tl.exp2(tl.fma(x, c, -new_shift[:, None])), axis=1)
    return new_shift, tl.fma(total, tl.exp2(shift - new_shift), block_total)


@triton.jit
def merge_totals(shift, total):
    """The shift and total of the whole from those of its parts, in an order that never varies."""
    whole_shift = tl.max(shift, axis=0)
    return whole_shift, tl.sum(total * tl.exp2(shift - whole_shift), axis=0)


@triton.jit
def merge(shift, total, edges, c):
    """The row's shift and total from those of its groups and from its edges, in an order that never varies."""
    row_shift = tl.maximum(tl.max(shift, axis=0), integer_shift(tl.max(edges, axis=0) * c))
    groups_total = tl.sum(total * tl.exp2(shift - row_shift), axis=0)
    return row_shift, groups_total + tl.sum(tl.exp2(tl.fma(edges, c, -row_shift)), axis=0)


@triton.jit
def log_sum_exp(shift, total):
    """log(sum exp(z / T)), in nats."""
    return tl.fma(shift, _LN2, tl.log(total))


@triton.jit
def from_log_sum_exp(lse):
    """A shift and 1 / total that belong to a stored log-sum-exp, without losing digits of lse * log2(e)."""
    shift = integer_shift(lse * 1.4426950408889634)
    rest = tl.fma(lse, 1.4426950216293335, -shift) + lse * 1.925963033500e-08  # log2(e) as a sum of two floats
    return shift, tl.exp2(-rest)


@triton.jit
def probabilities(x, c, shift, inverse_total):
    """a, and the probability 2^a / total, of every column."""
    a = tl.fma(x, c, -shift)
    return a, tl.exp2(a) * inverse_total


@triton.jit
def mean_log2(probability, a, log2_inverse):
    """sum probability * log2(probability) over the last axis; nothing where the probability is 0 and a is -inf."""
    return tl.sum(probability * tl.maximum(a + log2_inverse, -1.0e30), axis=len(a.shape) - 1)


@triton.jit
def entropy(mean_log2):
    """In nats; rounding does not make it negative."""
    nats = -_LN2 * mean_log2
    return tl.where(nats < 0.0, 0.0, nats)


@triton.jit
def track_best(x, head, first, best, column, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Maximum of each group of x (GROUPS, GROUP), and the running maximum with its lowest column. NaN counts as largest."""
    x = tl.where(x == x, x, float("inf"))
    top = tl.max(x, axis=1)
    lane = tl.min(tl.where(x == top[:, None], tl.arange(0, GROUP)[None, :], GROUP), axis=1)
    better = top > best
    here = head + (first + tl.arange(0, GROUPS)) * GROUP + lane
    return top, tl.where(better, top, best), tl.where(better, here, column)


@triton.jit
def lowest_best(best, column):
    """The largest of `best` and the lowest column that has it, among groups or slices; 0 when all are -inf."""
    top = tl.max(best, axis=0)
    lowest = tl.min(tl.where(best == top, column, 2**31 - 1), axis=0)
    return top, tl.where(top == float("-inf"), 0, lowest)


@triton.jit
def lowest_argmax(best, column, edges, edge_column):
    """The row's largest value and the lowest column that has it; 0 when all are -inf."""
    edges = tl.where(edges == edges, edges, float("inf"))
    groups_best, groups_column = lowest_best(best, column)
    edges_best, edges_column = lowest_best(edges, edge_column)
    either = tl.where(edges_best == groups_best, tl.minimum(groups_column, edges_column), groups_column)
    return tl.maximum(groups_best, edges_best), tl.where(edges_best > groups_best, edges_column, either)
