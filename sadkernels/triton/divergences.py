"""The divergences per column: their terms, and their gradients by the student's logits.

p and q are the probabilities of teacher and student, r = log q - log p, and dlogp is the divergence's derivative by log q,
divided by q. `sadkernels.reference.span_kl` has the formulas. Every term is non-negative, and exact if a probability is 0.

DIVERGENCE is a compile-time constant. `beta` is a run-time argument, so a sweep over it compiles once.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

_HAS_LG2 = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1" and torch.version.hip is None)
_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def kl_terms(a, b, r):
    """Returns a (expm1(r) - r) with r = log b - log a; the term is b if a == 0, and +inf if b == 0 < a."""
    # (expm1(r) - r) / r^2 on [-0.5, 0.5]: minimax polynomial, relative error 2.4e-8
    near = tl.fma(r, 0.00019875629293498583, 0.001398199736518918)
    near = tl.fma(r, near, 0.008333452172297051)
    near = tl.fma(r, near, 0.04166579594169203)
    near = tl.fma(r, near, 0.1666666545583802)
    near = tl.fma(r, near, 0.5000000120139757)
    # a == 0, not `not a > 0`: NaN stays NaN
    far = tl.where(a == 0.0, b, tl.fma(-a, r, b - a))
    return tl.where(tl.abs(r) < 0.5, a * (r * r) * near, far)


@triton.jit
def _log2(x):
    """Returns log2 of normal numbers. NVIDIA has one instruction for it, with an error of at most 2^-22."""
    if _HAS_LG2:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return tl.log2(x)  # a polynomial of about twenty instructions


@triton.jit
def log_mixture_ratios(r, beta):
    """Returns log(m / q) and log(m / p) for m = beta p + (1 - beta) q, from one exponential and one logarithm.

    The logarithm is log(m / max(p, q)). Its argument lies between min(beta, 1 - beta) and 1, and the exponential cannot
    overflow.
    """
    other = tl.exp2(-tl.abs(r) * _LOG2E) - 1.0
    student_larger = r > 0.0
    over_larger = _log2(tl.fma(tl.where(student_larger, beta, 1.0 - beta), other, 1.0)) * _LN2
    over_student = tl.where(student_larger, over_larger, over_larger - r)
    over_teacher = tl.where(student_larger, over_larger + r, over_larger)
    return over_student, over_teacher


@triton.jit
def divergence_terms(q, p, r, beta, DIVERGENCE: tl.constexpr):
    """Returns the terms whose sum is the divergence, and the terms whose sum is E_q[dlogp] (of reverse_kl and jsd)."""
    if DIVERGENCE == "forward_kl":
        terms = kl_terms(p, q, r)
        mean_dlogp_terms = terms
    elif DIVERGENCE == "reverse_kl":
        terms = kl_terms(q, p, -r)
        mean_dlogp_terms = terms
    else:
        over_student, over_teacher = log_mixture_ratios(r, beta)
        m = tl.fma(beta, p, (1.0 - beta) * q)
        mean_dlogp_terms = (1.0 - beta) * kl_terms(q, m, over_student)
        terms = tl.fma(beta, kl_terms(p, m, over_teacher), mean_dlogp_terms)
    return terms, mean_dlogp_terms


@triton.jit
def divergence_gradient(q, p, r, mean_dlogp, beta, DIVERGENCE: tl.constexpr):
    """Returns T dD/dz_student: q - p for forward_kl, else q (dlogp - mean_dlogp) with mean_dlogp = E_q[dlogp]."""
    if DIVERGENCE == "forward_kl":
        g = q - p
    else:
        if DIVERGENCE == "reverse_kl":
            dlogp = r
        else:
            over_student, _ = log_mixture_ratios(r, beta)
            dlogp = (beta - 1.0) * over_student
        g = tl.where(q == 0.0, 0.0, q * (dlogp - mean_dlogp))
    return g
