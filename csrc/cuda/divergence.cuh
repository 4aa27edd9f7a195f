// One column of two distributions: what it adds to the divergence, and how the gradient pulls it. And soft caps.
#pragma once

#include "device.cuh"
#include "span_kl_params.h"

namespace sad::cuda {

constexpr float ln2f = static_cast<float>(ln2), log2ef = static_cast<float>(log2e);

// How logits become exponents of base 2: a = factor x, or factor tanh(inside x) with a cap.
struct Exponent {
    float factor, inside;
    bool capped;
};

// The arithmetic of a launch, the same for all rows.
struct Arithmetic {
    Exponent student, teacher;
    Divergence divergence;
    float beta;
    float grad_scale;  // scale / T of the student
};

// a (expm1(r) - r), r = log b - log a: never negative, and exact at the edges: a == 0 gives b, b == 0 < a gives +inf.
__device__ __forceinline__ float kl_term(float a, float b, float r) {
    // (expm1(r) - r) / r^2 on [-1/2, 1/2]: minimax, relative error 2.4e-8
    float near = fmaf(r, 0.00019875629f, 0.0013981997f);
    near = fmaf(r, near, 0.0083334521f);
    near = fmaf(r, near, 0.041665796f);
    near = fmaf(r, near, 0.16666667f);
    near = fmaf(r, near, 0.5f);
    const float far = a == 0.0f ? b : fmaf(-a, r, b - a);  // not `a > 0`: a NaN stays one
    return fabsf(r) < 0.5f ? a * (r * r) * near : far;
}

// log(m / q) and log(m / p), m = beta p + (1 - beta) q: the larger of p and q has a log1p of e^-|r| - 1 over it.
struct MixtureOver {
    float student, teacher;
};
__device__ __forceinline__ MixtureOver log_mixture_over(float r, float beta) {
    const float other = power_of_2(-fabsf(r) * log2ef) - 1.0f;
    const bool student_larger = r > 0.0f;
    const float over_larger = log_of_2(fmaf(student_larger ? beta : 1.0f - beta, other, 1.0f)) * ln2f;
    return {student_larger ? over_larger : over_larger - r, student_larger ? over_larger + r : over_larger};
}

struct Terms {
    float value;  // of the divergence
    float pull;   // of E_q[G]
};

// p and q, and r = log q - log p. `Forward` is known when compiling in the kernels that people use most.
template <bool Forward>
__device__ __forceinline__ Terms divergence_terms(float p, float q, float r, const Arithmetic& how) {
    if (Forward || how.divergence == Divergence::forward) return {kl_term(p, q, r), 0.0f};
    if (how.divergence == Divergence::reverse) {
        const float value = kl_term(q, p, -r);
        return {value, value};
    }
    const MixtureOver over = log_mixture_over(r, how.beta);
    const float m = fmaf(how.beta, p, (1.0f - how.beta) * q);
    const float of_student = (1.0f - how.beta) * kl_term(q, m, over.student);
    return {fmaf(how.beta, kl_term(p, m, over.teacher), of_student), of_student};
}

// T times the derivative of the divergence by z_student.
template <bool Forward>
__device__ __forceinline__ float divergence_gradient(float p, float q, float r, float mean_pull, const Arithmetic& how) {
    if (Forward || how.divergence == Divergence::forward) return q - p;
    const float pull = how.divergence == Divergence::reverse ? r : (how.beta - 1.0f) * log_mixture_over(r, how.beta).student;
    return q == 0.0f ? 0.0f : q * (pull - mean_pull);
}

// tanh to a few units of the last place: minimax up to 0.6, beyond it 1 - 2 / (1 + e^2x).
__device__ __forceinline__ float tanh_of(float x) {
    const float square = x * x;
    float near = fmaf(square, 0.0019670301f, -0.0079931589f);
    near = fmaf(square, near, 0.021629198f);
    near = fmaf(square, near, -0.053934231f);
    near = fmaf(square, near, 0.13333111f);
    near = fmaf(square, near, -0.33333328f);
    const float magnitude = fabsf(x);
    const float power = power_of_2(fminf(60.0f, magnitude * (2.0f * log2ef)));
    const float far = copysignf(1.0f - 2.0f / (1.0f + power), x);
    return magnitude < 0.6f ? fmaf(near * square, x, x) : x == x ? far : x;
}

// What `factor` multiplies: the logit or its tanh.
template <bool Capless>
__device__ __forceinline__ float as_compared(float x, const Exponent& e) {
    return !Capless && e.capped ? tanh_of(x * e.inside) : x;
}

// A gradient by z as one by the scaled logit; y is what `as_compared` gave.
template <bool Capless>
__device__ __forceinline__ float through_cap(float g, float y, const Exponent& e) {
    return !Capless && e.capped ? g * fmaf(-y, y, 1.0f) : g;
}

}  // namespace sad::cuda
