// One column of two distributions: what it adds to the divergence, and how the gradient pulls it. In terms of `Vec`.
#pragma once

#include "span_kl.h"
#include "vec_math.h"

namespace sad::cpu {
namespace {

// a (expm1(r) - r), r = log b - log a: never negative, and exact at the edges: a == 0 gives b, b == 0 < a gives +inf.
inline Vec kl_term(Vec a, Vec b, Vec r) {
    const Vec near = a * (expm1_minus_x_over_x2(r) * (r * r));
    const Vec far = select(equal(a, Vec::set(0.0f)), b, (b - a) - a * r);
    return select(less(abs(r), Vec::set(0.5f)), near, far);
}

struct Column {
    Vec value;       // the term of the divergence
    Vec pull_value;  // the term of E_q[G]; jsd only: that of reverse is the value
    Vec pull;        // G
};

// p and q, and r = log2 q - log2 p.
template <Divergence D>
inline Column column(Vec p, Vec q, Vec r2, float beta) {
    const Vec zero = Vec::set(0.0f), one = Vec::set(1.0f);
    const Vec r = r2 * Vec::set(static_cast<float>(ln2));
    if constexpr (D == Divergence::forward) return {kl_term(p, q, r), zero, zero};
    if constexpr (D == Divergence::reverse) return {kl_term(q, p, zero - r), zero, r};
    // The larger of log(m / p) and log(m / q) is r away from the smaller, and that is log(1 + weight (e^-|r| - 1)).
    const Vec of_student = Vec::set(1.0f - beta), of_teacher = Vec::set(beta);
    const auto falling = less(r, zero);
    const Vec smaller = log(fma(select(falling, of_student, of_teacher), exp2(zero - abs(r2)) - one, one));
    const Vec m_over_p = select(falling, smaller, smaller + r), m_over_q = select(falling, smaller - r, smaller);
    const Vec m = fma(of_teacher, p, of_student * q);
    const Vec student_value = of_student * kl_term(q, m, m_over_q);
    return {fma(of_teacher, kl_term(p, m, m_over_p), student_value), student_value, zero - of_student * m_over_q};
}

}  // namespace
}  // namespace sad::cpu
