"""Two softmaxes and their divergence, in float32 registers and powers of two.

With c = log2(e) / T, a row of logits x becomes a = x c - shift, and softmax(x / T) = 2^a / total, total = sum 2^a. `shift`
is the row's maximum of x c rounded to an integer: so the powers stay near 1, and moving a running total to a new shift
multiplies it by an exact power of two. `tl.fma` is spelled out: whether a * b + c is fused depends on Triton's version.

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
def merge(shift, total, edges, c):
    """The row's shift and total from those of its groups and from its edges, in an order that never varies."""
    row_shift = tl.maximum(tl.max(shift, axis=0), integer_shift(tl.max(edges, axis=0) * c))
    groups_total = tl.sum(total * tl.exp2(shift - row_shift), axis=0)
    return row_shift, groups_total + tl.sum(tl.exp2(tl.fma(edges, c, -row_shift)), axis=0)


@triton.jit
def log_sum_exp(shift, total):
    """log(sum exp(x / T)), in nats."""
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
def per_column_kl(p, q, r):
    """p (expm1(r) - r) with r = log q - log p: never negative, and exact at the edges (`sadkernels.reference.span_kl`)."""
    # (expm1(r) - r) / r^2 on [-0.5, 0.5]: a minimax polynomial, relative error 2.4e-8
    near = tl.fma(r, 0.00019875629293498583, 0.001398199736518918)
    near = tl.fma(r, near, 0.008333452172297051)
    near = tl.fma(r, near, 0.04166579594169203)
    near = tl.fma(r, near, 0.1666666545583802)
    near = tl.fma(r, near, 0.5000000120139757)
    # p == 0, not `not p > 0`: a NaN stays one
    far = tl.where(p == 0.0, q, tl.fma(-p, r, q - p))
    return tl.where(tl.abs(r) < 0.5, p * (r * r) * near, far)


@triton.jit
def compare(s, t, c, shift_s, inverse_s, shift_t, inverse_t, log_ratio):
    """Exponents, probabilities q and p, and KL terms of matching columns; log_ratio = log(total_t / total_s)."""
    a_s, q = probabilities(s, c, shift_s, inverse_s)
    a_t, p = probabilities(t, c, shift_t, inverse_t)
    return a_s, a_t, q, p, per_column_kl(p, q, tl.fma(a_s - a_t, _LN2, log_ratio))


@triton.jit
def expected_exponent(probability, a):
    """sum probability * a over the last axis; nothing where the probability is 0 and a is -inf."""
    return tl.sum(probability * tl.maximum(a, -1.0e30), axis=len(a.shape) - 1)


@triton.jit
def entropy(total, mean_exponent):
    """log(total) - ln 2 * E[a], in nats; rounding does not make it negative."""
    nats = tl.log(total) - _LN2 * mean_exponent
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
def lowest_argmax(best, column, edges, edge_column):
    """The row's lowest column of maximal value; 0 when all are -inf."""
    edges = tl.where(edges == edges, edges, float("inf"))
    row_best = tl.maximum(tl.max(best, axis=0), tl.max(edges, axis=0))
    in_groups = tl.min(tl.where(best == row_best, column, 2**31 - 1), axis=0)
    at_edges = tl.min(tl.where(edges == row_best, edge_column, 2**31 - 1), axis=0)
    return tl.where(row_best == float("-inf"), 0, tl.minimum(in_groups, at_edges))
