"""Softmaxes in float32 registers and powers of two: soft cap, running totals, log-sum-exp, entropy, argmax.

A kernel turns each logit x into a value y, and y into a power of two:

    y = x                     without a soft cap
    y = tanh(x tanh_scale)    with a soft cap (CAPPED)
    probability = 2^((y - origin) c - log2_sum)

The launcher folds log2(e), 1 / T, and the logit scale or the cap into c (`sadkernels.triton.launch.logit_arguments`). The
origin is a value y near the largest one, so neither a large logit nor a large number that all logits have in common costs
digits.

The pass that computes the totals adds 2^(y c - shift), which is one instruction less. `shift` is the maximum of y c, rounded
to an integer. So the powers stay near 1, and a change of the shift multiplies a running total by an exact power of two. From
2^26 on an exponent has too few digits for this. Then the pass runs again with EXACT, and adds 2^((y - top) c) with the
largest y as `top`. A row or block of only -inf has total 0 and not NaN.

The code calls `tl.fma` explicitly, because Triton's version decides if a * b + c is fused.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

SHIFT_BOUND = tl.constexpr(67108864.0)  # 2^26, where floats are 8 apart: powers stay below 2^8
LOWEST = tl.constexpr(-3.4028234663852886e38)  # the lowest float
_TO_INTEGER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it leaves no bits for a fraction
_LN2 = tl.constexpr(0.6931471805599453)
_TANH_BRANCH = tl.constexpr(0.625)


class LogitRow(NamedTuple):
    """A row of logits in memory, and the constants that turn a logit into an exponent."""

    pointer: tl.tensor
    c: tl.tensor
    tanh_scale: tl.tensor
    CAPPED: tl.constexpr


class LogSum(NamedTuple):
    """The normalization of a row's softmax: probability = 2^((y - origin) c - log2_sum)."""

    origin: tl.tensor
    log2_sum: tl.tensor


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
    """Rounds `top` to the nearest integer (to a nearby float from 2^22 on) and keeps it within the bound."""
    return tl.minimum(tl.maximum((top + _TO_INTEGER) - _TO_INTEGER, -SHIFT_BOUND), SHIFT_BOUND)


@triton.jit
def no_groups(GROUPS: tl.constexpr, EXACT: tl.constexpr):
    """Returns the shift (the top if EXACT) and the total of groups without columns, (GROUPS,) each."""
    return tl.full((GROUPS,), LOWEST if EXACT else -SHIFT_BOUND, tl.float32), tl.full((GROUPS,), 0.0, tl.float32)


@triton.jit
def add_block(y, top, c, shift, total, EXACT: tl.constexpr):
    """Adds a block y (GROUPS, GROUP) with group maxima `top` to the running shift and total of every group, (GROUPS,) each.

    If EXACT, `shift` is the running maximum of y. One thread owns a group, so the maximum per group needs no exchange
    between threads, and GROUP columns share one correction of the total.
    """
    if EXACT:
        new_shift = tl.maximum(shift, top)
        block_total = tl.sum(tl.exp2((y - new_shift[:, None]) * c), axis=1)
        correction = tl.exp2((shift - new_shift) * c)
    else:
        new_shift = tl.maximum(shift, integer_shift(top * c))
        block_total = tl.sum(tl.exp2(tl.fma(y, c, -new_shift[:, None])), axis=1)
        correction = tl.exp2(shift - new_shift)
    return new_shift, tl.fma(total, correction, block_total)


@triton.jit
def add_ordinary_block(y, top, c, shift, total):
    """`add_block` without EXACT and without limits: a shift beyond the bound is only known to be `out_of_bounds`."""
    new_shift = tl.maximum(shift, tl.fma(top, c, _TO_INTEGER) - _TO_INTEGER)
    block_total = tl.sum(tl.exp2(tl.fma(y, c, -new_shift[:, None])), axis=1)
    return new_shift, tl.fma(total, tl.exp2(shift - new_shift), block_total)


@triton.jit
def sum_over_threads(x):
    """Returns the sum of a vector whose elements are in several threads.

    Without the addition of 0 the compiler may fuse a product x into the first addition between two threads. Then each thread
    rounds only the other thread's product, and the threads disagree about the last bit of the sum.
    """
    return tl.sum(x + 0.0, axis=0)


@triton.jit
def merge_groups_and_edges(shift, total, edges, c, EXACT: tl.constexpr):
    """Merges the shifts and totals of a row's groups and the values y of its edges into one, in a fixed order."""
    top = tl.max(edges, axis=0)
    if EXACT:
        row_shift = tl.maximum(tl.max(shift, axis=0), top)
        groups_total = sum_over_threads(total * tl.exp2((shift - row_shift) * c))
        edges_total = tl.sum(tl.exp2((edges - row_shift) * c), axis=0)
    else:
        row_shift = tl.maximum(tl.max(shift, axis=0), integer_shift(top * c))
        groups_total = sum_over_threads(total * tl.exp2(shift - row_shift))
        edges_total = tl.sum(tl.exp2(tl.fma(edges, c, -row_shift)), axis=0)
    return row_shift, groups_total + edges_total


@triton.jit
def out_of_bounds(shift):
    """Returns whether exponents are too large for a pass that is not EXACT, or there are none: its total is undefined."""
    return tl.abs(shift) >= SHIFT_BOUND


@triton.jit
def origin_of(shift, c):
    """Returns a value y whose exponent is nearly `shift`; any number near it serves as an origin."""
    return tl.minimum(tl.maximum(shift / c, LOWEST), -LOWEST)


@triton.jit
def log_sum_of(origin, total):
    """Returns the `LogSum` of a total relative to `origin`. An empty sum has the origin 0."""
    return LogSum(tl.where(total == 0.0, 0.0, origin), tl.log2(total))


@triton.jit
def log_sum_of_totals(shift, total, c, EXACT: tl.constexpr):
    """Returns the `LogSum` of a row's shift (or top, if EXACT) and total."""
    if EXACT:
        return log_sum_of(shift, total)
    else:
        origin = origin_of(shift, c)
        return LogSum(origin, tl.log2(total) + tl.fma(-origin, c, shift))


@triton.jit
def merge_log_sums(origin, log2_sum, c):
    """Merges the `LogSum`s of parts, given as two vectors, into one, in a fixed order."""
    origin = tl.where(log2_sum == float("-inf"), LOWEST, origin)
    top = tl.max(origin, axis=0)
    return log_sum_of(top, tl.sum(tl.exp2(tl.fma(origin - top, c, log2_sum)), axis=0))


@triton.jit
def nats(log_sum):
    """Returns the log-sum in nats, as the state holds it."""
    return log_sum.log2_sum * _LN2


@triton.jit
def load_log_sum(log_sums, origins, row):
    """Returns the `LogSum` of a row from its log-sum in nats and its origin, without losing digits of the product."""
    log_sum = tl.load(log_sums + row)
    log2_sum = tl.fma(log_sum, 1.4426950216293335, log_sum * 1.925963033500e-08)  # log2(e) as a sum of two floats
    return LogSum(tl.load(origins + row), log2_sum)


@triton.jit
def log2_probabilities(y, c, log_sum):
    """Returns the base-2 logarithms of the probabilities of columns y."""
    return tl.fma(y - log_sum.origin, c, -log_sum.log2_sum)


@triton.jit
def mean_log2(probability, log2_probability):
    """Returns sum probability * log2(probability) over the last axis; a column of probability 0 adds 0."""
    terms = probability * tl.maximum(log2_probability, -1.0e30)
    if len(terms.shape) == 1:
        mean = sum_over_threads(terms)
    else:  # a group is in one thread
        mean = tl.sum(terms, axis=1)
    return mean


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
