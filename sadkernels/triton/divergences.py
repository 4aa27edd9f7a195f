"""The divergences per column: their terms, and their gradients by the student's logits.

p and q are the probabilities of teacher and student, r = log q - log p, and dlogp is the divergence's derivative by log q,
divided by q. `sadkernels.reference.span_kl` has the formulas. Every term is non-negative, and exact if a probability is 0.

DIVERGENCE is a compile-time constant. The `Mixture` is a run-time argument, so a sweep over beta compiles once.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl

_HAS_LG2 = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1" and torch.version.hip is None)
_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)


class Mixture(NamedTuple):
    """The mixture m = teacher_share p + student_share q of jsd, and the border between two ways to compute log m.

        log(m / q) = log1p(teacher_share (p / q - 1))  if r >= border
        log(m / p) = log1p(student_share (q / p - 1))  otherwise

    and the other one differs from it by r. At the border of `sadkernels.triton.launch.mixture_arguments` neither a log1p nor
    the difference cancels: the argument of log1p is at most 1/3 if its share is the smaller one, and at least -1/2 or far
    from 0 if not.
    """

    teacher_share: tl.tensor  # beta
    student_share: tl.tensor  # 1 - beta, rounded from float64: near the ends of beta it is all of the result
    border: tl.tensor


class JsdSeries(NamedTuple):
    """The series of jsd in powers of r, for beta from 0.1 to 0.9 and |r| < 0.5.

    log(m / q) has a relative error of at most 4e-5, and (the term) / (d r), where d = q - p, of at most 2e-4.
    """

    log_ratio_1: tl.tensor
    log_ratio_2: tl.tensor
    log_ratio_3: tl.tensor
    log_ratio_4: tl.tensor
    log_ratio_5: tl.tensor
    term_0: tl.tensor
    term_1: tl.tensor
    term_2: tl.tensor
    term_3: tl.tensor
    teacher_share: tl.tensor
    student_share: tl.tensor


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
def fast_kl_terms(a, r, d):
    """Returns `kl_terms` of finite r to a relative accuracy of 2e-5, with d = b - a.

    a (expm1(r) - r) = d r (1 / r - 1 / expm1(r)); near 0 the last factor is nearly linear.
    """
    # minimax on [-0.25, 0.25]: relative error 1.1e-5. From 0.25 on, d - a r loses at most the same to cancellation
    near = (d * r) * tl.fma(r, -0.08326823, 0.5)
    return tl.where(tl.abs(r) < 0.25, near, tl.fma(-a, r, d))


@triton.jit
def _log2(x):
    """Returns log2 of normal numbers. NVIDIA has one instruction for it, with an error of at most 2^-22."""
    if _HAS_LG2:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return tl.log2(x)  # a polynomial of about twenty instructions


@triton.jit
def _log(x, y):
    """Returns log(x) with x = 1 + y; y has more digits than x if x is near 1."""
    # log1p(y) = y + y^2 P(y) on [-1/3, 1/3]: minimax polynomial, relative error 3e-8
    near = tl.fma(y, 0.143742029, -0.153727246)
    near = tl.fma(y, near, 0.139209035)
    near = tl.fma(y, near, -0.164193535)
    near = tl.fma(y, near, 0.200160606)
    near = tl.fma(y, near, -0.250075986)
    near = tl.fma(y, near, 0.333331063)
    near = tl.fma(y, near, -0.499999402)
    return tl.where(tl.abs(y) < 0.33333333, tl.fma(near, y * y, y), _log2(x) * _LN2)


@triton.jit
def log_mixture_ratios(r, mixture):
    """Returns log(m / q) and log(m / p) of the `Mixture` m, from one exponential and one logarithm."""
    by_p = r < mixture.border
    share = tl.where(by_p, mixture.student_share, mixture.teacher_share)
    other = tl.where(by_p, mixture.teacher_share, mixture.student_share)
    ratio = tl.exp2(tl.where(by_p, r, -r) * _LOG2E)
    log_m = _log(tl.fma(share, ratio, other), share * (ratio - 1.0))
    return tl.where(by_p, log_m - r, log_m), tl.where(by_p, log_m, log_m + r)


@triton.jit
def divergence_terms(q, p, r, mixture, DIVERGENCE: tl.constexpr):
    """Returns the terms whose sum is the divergence, and the terms whose sum is E_q[dlogp] (of reverse_kl and jsd)."""
    if DIVERGENCE == "forward_kl":
        terms = kl_terms(p, q, r)
        mean_dlogp_terms = terms
    elif DIVERGENCE == "reverse_kl":
        terms = kl_terms(q, p, -r)
        mean_dlogp_terms = terms
    else:
        over_student, over_teacher = log_mixture_ratios(r, mixture)
        m = tl.fma(mixture.teacher_share, p, mixture.student_share * q)
        mean_dlogp_terms = mixture.student_share * kl_terms(q, m, over_student)
        terms = tl.fma(mixture.teacher_share, kl_terms(p, m, over_teacher), mean_dlogp_terms)
    return terms, mean_dlogp_terms


@triton.jit
def jsd_series(mixture):
    """Returns the `JsdSeries` of a `Mixture`."""
    beta = mixture.teacher_share
    variance, skew = beta * mixture.student_share, 1.0 - 2.0 * beta
    return JsdSeries(
        -beta,
        variance / 2.0,
        variance * skew / -6.0,
        variance * (1.0 - 6.0 * variance) / 24.0,
        variance * skew * (1.0 - 12.0 * variance) / -120.0,
        variance / 2.0,
        variance * skew / -12.0,
        variance * variance / -12.0,
        variance * skew * (1.0 + 18.0 * variance) / 720.0,
        beta,
        mixture.student_share,
    )


@triton.jit
def fast_log_mixture_ratio(p, r, d, log2_q, log2_scale, series):
    """Returns m and log(m / q) of finite columns, to an accuracy of 2e-6 or, near r = 0, to a relative accuracy of 4e-5.

    p, d = q - p and m are in one scale, whose logarithm is `log2_scale` more than the scale of `log2_q`.
    """
    m = tl.fma(series.student_share, d, p)
    near = tl.fma(r, series.log_ratio_5, series.log_ratio_4)
    near = tl.fma(r, near, series.log_ratio_3)
    near = tl.fma(r, near, series.log_ratio_2)
    near = r * tl.fma(r, near, series.log_ratio_1)
    return m, tl.where(tl.abs(r) < 0.5, near, tl.fma(_log2(m) - log2_q, _LN2, log2_scale * -_LN2))


@triton.jit
def fast_jsd_terms(p, r, d, m, log_ratio, series):
    """Returns the terms of jsd: -(m log(m / q) + beta p r). Near r = 0, where these cancel, a series replaces them."""
    near = tl.fma(r, series.term_3, series.term_2)
    near = tl.fma(r, near, series.term_1)
    near = tl.fma(r, near, series.term_0)
    far = tl.fma(p * r, -series.teacher_share, -m * log_ratio)
    return tl.where(tl.abs(r) < 0.5, (d * r) * near, far)


@triton.jit
def divergence_gradient(q, p, r, mean_dlogp, mixture, DIVERGENCE: tl.constexpr):
    """Returns T dD/dz_student: q - p for forward_kl, else q (dlogp - mean_dlogp) with mean_dlogp = E_q[dlogp]."""
    if DIVERGENCE == "forward_kl":
        g = q - p
    else:
        if DIVERGENCE == "reverse_kl":
            dlogp = r
        else:
            over_student, _ = log_mixture_ratios(r, mixture)
            dlogp = -mixture.student_share * over_student
        g = tl.where(q == 0.0, 0.0, q * (dlogp - mean_dlogp))
    return g
