"""Per column: the terms of each divergence, and what its gradient needs. `sadkernels.reference.span_kl` has the formulas.

p and q are probabilities of teacher and student, r = log q - log p. Every term is non-negative, and exact where a
probability is 0. The DIVERGENCE is a constant of the kernel; `beta` is an argument, so that a sweep over it compiles once.
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
    """a (expm1(r) - r) with r = log b - log a; b where a == 0, +inf where b == 0 < a."""
    # (expm1(r) - r) / r^2 on [-0.5, 0.5]: a minimax polynomial, relative error 2.4e-8
    near = tl.fma(r, 0.00019875629293498583, 0.001398199736518918)
    near = tl.fma(r, near, 0.008333452172297051)
    near = tl.fma(r, near, 0.04166579594169203)
    near = tl.fma(r, near, 0.1666666545583802)
    near = tl.fma(r, near, 0.5000000120139757)
    # a == 0, not `not a > 0`: a NaN stays one
    far = tl.where(a == 0.0, b, tl.fma(-a, r, b - a))
    return tl.where(tl.abs(r) < 0.5, a * (r * r) * near, far)


@triton.jit
def _log2(x):
    """log2 of normal numbers. On NVIDIA one instruction, off by 2^-22 at most; `tl.log2` is a polynomial of some twenty."""
    if _HAS_LG2:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return tl.log2(x)


@triton.jit
def log_mixture_over(r, beta):
    """log(m / q) and log(m / p) for m = beta p + (1 - beta) q, from one exponential that cannot overflow and one logarithm.

    The logarithm is that of m over the larger of p and q, which lies between min(beta, 1 - beta) and 1.
    """
    other = tl.exp2(-tl.abs(r) * _LOG2E) - 1.0
    student_larger = r > 0.0
    over_larger = _log2(tl.fma(tl.where(student_larger, beta, 1.0 - beta), other, 1.0)) * _LN2
    over_student = tl.where(student_larger, over_larger, over_larger - r)
    over_teacher = tl.where(student_larger, over_larger + r, over_larger)
    return over_student, over_teacher


@triton.jit
def divergence_terms(q, p, r, beta, DIVERGENCE: tl.constexpr):
    """Terms of the divergence, and the terms whose sum is E_q[G] (those of the divergence itself but for jsd)."""
    if DIVERGENCE == "forward_kl":
        terms = kl_terms(p, q, r)
        of_student = terms
    elif DIVERGENCE == "reverse_kl":
        terms = kl_terms(q, p, -r)
        of_student = terms
    else:
        over_student, over_teacher = log_mixture_over(r, beta)
        m = tl.fma(beta, p, (1.0 - beta) * q)
        of_student = (1.0 - beta) * kl_terms(q, m, over_student)
        terms = tl.fma(beta, kl_terms(p, m, over_teacher), of_student)
    return terms, of_student


@triton.jit
def divergence_gradient(q, p, r, mean_pull, beta, DIVERGENCE: tl.constexpr):
    """T times the derivative by z_student: q - p, or q (G - E_q[G]) with `mean_pull` = E_q[G]."""
    if DIVERGENCE == "forward_kl":
        g = q - p
    else:
        if DIVERGENCE == "reverse_kl":
            pull = r
        else:
            over_student, _ = log_mixture_over(r, beta)
            pull = (beta - 1.0) * over_student
        g = tl.where(q == 0.0, 0.0, q * (pull - mean_pull))
    return g
