// The terms of one column in the divergence and in its gradient, and soft caps.
#pragma once

#include "device.cuh"
#include "params.h"

namespace sad::cuda {

constexpr float ln2f = static_cast<float>(ln2), log2ef = static_cast<float>(log2e);

// Converts logits to base-2 exponents: a = factor x, or a = factor tanh(tanh_scale x) with a cap.
struct Exponent {
    float factor, tanh_scale;
    float inverse;  // 1 / factor, finite
    bool capped;
};

// The cases that kernels are compiled for: the common rows with one divergence each (no soft cap, rows of student, teacher
// and gradient that are aligned alike), or all rows and divergences.
enum class Case { forward, reverse, jsd, general };
SAD_HOST_DEVICE constexpr bool is_common(Case which) { return which != Case::general; }
// Whether two blocks of the kernels for whole rows fit an SM. With at most 64 registers, ptxas spills the other cases.
SAD_HOST_DEVICE constexpr bool is_lean(Case which) { return which == Case::forward; }

constexpr int series_terms = 6;

// The weights of the mixture m = teacher p + student q, and the border between two ways to compute log m; r = log q - log p:
//
//   log(m / q) = log1p(teacher (p / q - 1))  if r >= border
//   log(m / p) = log1p(student (q / p - 1))  otherwise
//
// and the other one differs from it by r. At this border neither a log1p nor the difference cancels: the argument of log1p
// is at most 1/3 if its weight is the smaller one, and at least -1/2 or far from 0 if not. Both weights are rounded from
// double, because near the ends of beta the smaller one is all of the result.
//
// Short forms, for 16-bit logits and weights that are not near 0 (`jsd_is_short`), work in units of -teacher ln(2):
// p r^2 times the series in r for |r| < 1/2, otherwise p log2(m / p) + (student / teacher) q log2(m / q).
struct Mixture {
    float teacher, student, border;
    float short_unit;            // -teacher ln(2)
    float student_by_teacher;    // student / teacher
    float series[series_terms];  // lowest power of r first
};

// The options of `SpanKlParams` in the form that the arithmetic uses.
struct DivergenceConfig {
    Exponent student, teacher;
    Divergence divergence;
    Mixture mixture;
    float grad_scale;  // scale / T of the student
};

// Returns a (expm1(r) - r) from r = log b - log a and `difference` = b - a. Never negative, and exact at the edges: b if
// a == 0, +inf if b == 0 < a. With `Finite`, r is finite or NaN. The relative error, with a and b within 2.4e-7 as
// exp2_approx is, is at most 2e-5 if `Short` (for 16-bit logits), otherwise 4e-6: at the border, where b - a - a r cancels.
template <bool Short, bool Finite>
__device__ __forceinline__ float kl_term(float a, float difference, float r) {
    // Not `a > 0`, which would drop a NaN.
    const float far = Finite || a != 0.0f ? fmaf(-a, r, difference) : difference;
    if constexpr (Short) {
        // (expm1(r) - r) / r^2 on [-1/4, 1/4]: minimax, relative error 1.4e-6
        float near = fmaf(r, 0.0083374638f, 0.0417535f);
        near = fmaf(r, near, 0.16666696f);
        near = fmaf(r, near, 0.49999932f);
        return fabsf(r) < 0.25f ? (a * r) * (r * near) : far;
    } else {
        // (expm1(r) - r) / r^2 on [-1/2, 1/2]: minimax, relative error 2.4e-8
        float near = fmaf(r, 0.00019875629f, 0.0013981997f);
        near = fmaf(r, near, 0.0083334521f);
        near = fmaf(r, near, 0.041665796f);
        near = fmaf(r, near, 0.16666667f);
        near = fmaf(r, near, 0.5f);
        return fabsf(r) < 0.5f ? a * (r * r) * near : far;
    }
}

// log(x) with x = 1 + y; y has more digits than x if x is near 1.
__device__ __forceinline__ float log_of(float x, float y) {
    // log1p(y) = y + y^2 P(y) on [-1/3, 1/3]: minimax, relative error 3e-8
    float near = fmaf(y, 0.143742029f, -0.153727246f);
    near = fmaf(y, near, 0.139209035f);
    near = fmaf(y, near, -0.164193535f);
    near = fmaf(y, near, 0.200160606f);
    near = fmaf(y, near, -0.250075986f);
    near = fmaf(y, near, 0.333331063f);
    near = fmaf(y, near, -0.499999402f);
    return fabsf(y) < 0.33333333f ? fmaf(near, y * y, y) : log2_approx(x) * ln2f;
}

// log(m / q) and log(m / p), see `Mixture`.
struct LogMixtureRatios {
    float student, teacher;
};
__device__ __forceinline__ LogMixtureRatios log_mixture_ratios(float r, const Mixture& mixture) {
    const bool by_p = r < mixture.border;
    const float weight = by_p ? mixture.student : mixture.teacher, other = by_p ? mixture.teacher : mixture.student;
    const float ratio = exp2_approx((by_p ? r : -r) * log2ef);
    const float log_m = log_of(fmaf(weight, ratio, other), weight * (ratio - 1.0f));
    return {by_p ? log_m - r : log_m, by_p ? log_m : log_m + r};
}

// Returns log2(m / q) from d = log2(q / p). The error is 2e-7 of the larger of 1 and the result.
__device__ __forceinline__ float short_log2_mixture_ratio(float d, const Mixture& mixture) {
    return log2_approx(fmaf(mixture.teacher, exp2_approx(-d), mixture.student));
}
// The bound keeps p / q finite, where q is 0 or nearly. It replaces the NaN of a column that both sides exclude.
__device__ __forceinline__ float bounded_below(float d) { return fmaxf(d, -120.0f); }

// One column, with d = log2(q / p) and r = ln(q / p).
struct ColumnValues {
    float s, t;            // logits of student and teacher, or their tanh
    float log2_q, log2_p;  // base-2 logarithms
    float q, p, d, r;      // d and r are NaN if both logits are -inf
};

struct ColumnTerms {
    float value;       // the term of the divergence
    float mean_dlogp;  // the term of E_q[G]
};

template <Case C>
__device__ __forceinline__ Divergence divergence_of(const DivergenceConfig& config) {
    return C == Case::general   ? config.divergence
           : C == Case::forward ? Divergence::forward
           : C == Case::reverse ? Divergence::reverse
                                : Divergence::jsd;
}

// Returns the terms of a column, of JSD in the units of `term_units`. `Finite`: the logarithms are finite or NaN.
template <Case C, bool Short, bool Finite>
__device__ __forceinline__ ColumnTerms divergence_terms(const ColumnValues& c, const DivergenceConfig& config) {
    const float p = c.p, q = c.q, r = c.r;
    const Divergence divergence = divergence_of<C>(config);
    if (divergence == Divergence::forward) return {kl_term<Short, Finite>(p, q - p, r), 0.0f};
    if (divergence == Divergence::reverse) {
        const float value = kl_term<Short, Finite>(q, p - q, -r);
        return {value, value};
    }
    const Mixture& mixture = config.mixture;
    if constexpr (C == Case::jsd && Short) {
        const float d = bounded_below(c.d), log2_m_by_q = short_log2_mixture_ratio(d, mixture), mean = q * log2_m_by_q;
        const float far = fmaf(mixture.student_by_teacher, mean, p * (log2_m_by_q + d));
        float near = mixture.series[series_terms - 1];
#pragma unroll
        for (int i = series_terms - 2; i >= 0; --i) near = fmaf(r, near, mixture.series[i]);
        return {fabsf(r) < 0.5f ? (p * r) * (r * near) : far, mean};
    }
    const LogMixtureRatios ratios = log_mixture_ratios(r, mixture);
    const float m = fmaf(mixture.teacher, p, mixture.student * q);
    const float student_term = mixture.student * kl_term<Short, false>(q, m - q, ratios.student);
    return {fmaf(mixture.teacher, kl_term<Short, false>(p, m - p, ratios.teacher), student_term), student_term};
}

template <Case C, bool Short>
__device__ __forceinline__ ColumnTerms term_units(const DivergenceConfig& config) {
    if (C == Case::jsd && Short) return {config.mixture.short_unit, -ln2f * config.mixture.student};
    return {1.0f, 1.0f};
}

// Returns T times the derivative of the divergence by z_student.
template <Case C, bool Short>
__device__ __forceinline__ float divergence_gradient(const ColumnValues& c, float mean_dlogp,
                                                     const DivergenceConfig& config) {
    const Divergence divergence = divergence_of<C>(config);
    if (divergence == Divergence::forward) return c.q - c.p;
    if constexpr (C == Case::jsd && Short) {
        const float log2_m_by_q = short_log2_mixture_ratio(bounded_below(c.d), config.mixture);
        return c.q * fmaf(-ln2f * config.mixture.student, log2_m_by_q, -mean_dlogp);
    }
    const float dlogp =
        divergence == Divergence::reverse ? c.r : -config.mixture.student * log_mixture_ratios(c.r, config.mixture).student;
    return c.q == 0.0f ? 0.0f : c.q * (dlogp - mean_dlogp);
}

// tanh within a few units in the last place: minimax below 0.6, else 1 - 2 / (1 + e^2x).
__device__ __forceinline__ float tanh_of(float x) {
    const float square = x * x;
    float near = fmaf(square, 0.0019670301f, -0.0079931589f);
    near = fmaf(square, near, 0.021629198f);
    near = fmaf(square, near, -0.053934231f);
    near = fmaf(square, near, 0.13333111f);
    near = fmaf(square, near, -0.33333328f);
    const float magnitude = fabsf(x);
    const float power = exp2_approx(fminf(60.0f, magnitude * (2.0f * log2ef)));
    const float far = copysignf(fmaf(-2.0f, reciprocal_approx(1.0f + power), 1.0f), x);
    return magnitude < 0.6f ? fmaf(near * square, x, x) : x == x ? far : x;
}

// Returns what `factor` multiplies: the logit, or its tanh if there is a cap.
template <bool Capless>
__device__ __forceinline__ float exponent_input(float x, const Exponent& e) {
    return !Capless && e.capped ? tanh_of(x * e.tanh_scale) : x;
}

// Converts the gradient by z to the gradient by the scaled logit. y is the result of `exponent_input`.
template <bool Capless>
__device__ __forceinline__ float apply_cap_slope(float g, float y, const Exponent& e) {
    return !Capless && e.capped ? g * fmaf(-y, y, 1.0f) : g;
}

}  // namespace sad::cuda
