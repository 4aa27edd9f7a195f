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

// The weights of the mixture m = teacher p + student q, and the border between two ways to compute log m; r = log q - log p:
//
//   log(m / q) = log1p(teacher (p / q - 1))  if r >= border
//   log(m / p) = log1p(student (q / p - 1))  otherwise
//
// and the other one differs from it by r. At this border neither a log1p nor the difference cancels: the argument of log1p
// is at most 1/3 if its weight is the smaller one, and at least -1/2 or far from 0 if not. Both weights are rounded from
// double, because near the ends of beta the smaller one is all of the result.
struct Mixture {
    float teacher, student, border;
};

// The options of `SpanKlParams` in the form that the arithmetic uses.
struct DivergenceConfig {
    Exponent student, teacher;
    Divergence divergence;
    Mixture mixture;
    float grad_scale;  // scale / T of the student
};

// a (expm1(r) - r) with r = log b - log a. Never negative, and exact at the edges: b if a == 0, +inf if b == 0 < a.
__device__ __forceinline__ float kl_term(float a, float b, float r) {
    // (expm1(r) - r) / r^2 on [-1/2, 1/2]: minimax, relative error 2.4e-8
    float near = fmaf(r, 0.00019875629f, 0.0013981997f);
    near = fmaf(r, near, 0.0083334521f);
    near = fmaf(r, near, 0.041665796f);
    near = fmaf(r, near, 0.16666667f);
    near = fmaf(r, near, 0.5f);
    const float far = a == 0.0f ? b : fmaf(-a, r, b - a);  // not `a > 0`, which would drop a NaN
    return fabsf(r) < 0.5f ? a * (r * r) * near : far;
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

struct ColumnTerms {
    float value;       // the term of the divergence
    float mean_dlogp;  // the term of E_q[G]
};

// Returns the terms from p, q and r = log q - log p. `Forward` is true in kernels that support the forward KL only.
template <bool Forward>
__device__ __forceinline__ ColumnTerms divergence_terms(float p, float q, float r, const DivergenceConfig& config) {
    if (Forward || config.divergence == Divergence::forward) return {kl_term(p, q, r), 0.0f};
    if (config.divergence == Divergence::reverse) {
        const float value = kl_term(q, p, -r);
        return {value, value};
    }
    const Mixture& mixture = config.mixture;
    const LogMixtureRatios ratios = log_mixture_ratios(r, mixture);
    const float m = fmaf(mixture.teacher, p, mixture.student * q);
    const float student_term = mixture.student * kl_term(q, m, ratios.student);
    return {fmaf(mixture.teacher, kl_term(p, m, ratios.teacher), student_term), student_term};
}

// Returns T times the derivative of the divergence by z_student.
template <bool Forward>
__device__ __forceinline__ float divergence_gradient(float p, float q, float r, float mean_dlogp,
                                                     const DivergenceConfig& config) {
    if (Forward || config.divergence == Divergence::forward) return q - p;
    const float dlogp = config.divergence == Divergence::reverse
                            ? r
                            : -config.mixture.student * log_mixture_ratios(r, config.mixture).student;
    return q == 0.0f ? 0.0f : q * (dlogp - mean_dlogp);
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
    const float far = copysignf(1.0f - 2.0f / (1.0f + power), x);
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
