"""Logits bounded by cap tanh(scale x / cap): the tanh, and its slope."""

from __future__ import annotations

import triton
import triton.language as tl

_NEAR = tl.constexpr(0.625)


@triton.jit
def tanh(u):
    """tanh to a few units in the last place, from one exponential and no call: 1 - 2 / (1 + e^2u) loses digits near 0."""
    # (tanh(u) - u) / u^3 in powers of u^2 for |u| < 0.625: a minimax polynomial, relative error of the result 4.4e-9
    z = u * u
    near = tl.fma(z, -0.005704985465854406, 0.02063908614218235)
    near = tl.fma(z, near, -0.05373971536755562)
    near = tl.fma(z, near, 0.13331441581249237)
    near = tl.fma(z, near, -0.3333328068256378)
    far = 1.0 - 2.0 / (1.0 + tl.exp2(u * 2.8853900817779268))  # 2 log2(e); NaN stays NaN, +-inf gives +-1
    return tl.where(tl.abs(u) < _NEAR, tl.fma(u * z, near, u), far)


@triton.jit
def as_compared(x, inner, exists, CAPPED: tl.constexpr):
    """Logits as loaded in float32; with CAPPED tanh(x inner), but still -inf where no column `exists`.

    The cap itself is part of the factor c that the softmax multiplies with.
    """
    x = x.to(tl.float32)
    if CAPPED:
        x = tl.where(exists, tanh(x * inner), float("-inf"))
    return x


@triton.jit
def through_cap(g, y, CAPPED: tl.constexpr):
    """A gradient by z as one by the scaled logit, from the column's tanh y."""
    if CAPPED:
        g = g * tl.fma(-y, y, 1.0)
    return g
