// The terms of one column in the divergence and in its gradient. Uses `Vec`, which another header defines before this one.
#pragma once

#include "kernels.h"
#include "vec_math.h"

namespace sad::cpu {
namespace {

// a (expm1(r) - r) with r = log b - log a. Never negative, and exact at the edges: b if a == 0, +inf if b == 0 < a.
inline Vec kl_term(Vec a, Vec b, Vec r) {
    const Vec near = a * (expm1_minus_x_over_x2(r) * (r * r));
    const Vec far = select(equal(a, Vec::set(0.0f)), b, (b - a) - a * r);
    return select(less(abs(r), Vec::set(0.5f)), near, far);
}

struct ColumnTerms {
    Vec value;            // the term of the divergence
    Vec mean_dlogp_term;  // the term of E_q[G]; only for jsd, because for reverse it equals the value
    Vec dlogp;            // G
};

// Returns the terms from p, q and r2 = log2 q - log2 p.
template <Divergence D>
inline ColumnTerms column_terms(Vec p, Vec q, Vec r2, float beta) {
    const Vec zero = Vec::set(0.0f), one = Vec::set(1.0f);
    const Vec r = r2 * Vec::set(static_cast<float>(ln2));
    if constexpr (D == Divergence::forward) return {kl_term(p, q, r), zero, zero};
    if constexpr (D == Divergence::reverse) return {kl_term(q, p, zero - r), zero, r};
    // The smaller of log(m / p) and log(m / q) is log(1 + weight (e^-|r| - 1)). The larger one differs from it by |r|.
    const Vec student_weight = Vec::set(1.0f - beta), teacher_weight = Vec::set(beta);
    const auto q_smaller = less(r, zero);
    const Vec smaller = log(fma(select(q_smaller, student_weight, teacher_weight), exp2(zero - abs(r2)) - one, one));
    const Vec m_over_p = select(q_smaller, smaller, smaller + r), m_over_q = select(q_smaller, smaller - r, smaller);
    const Vec m = fma(teacher_weight, p, student_weight * q);
    const Vec student_value = student_weight * kl_term(q, m, m_over_q);
    return {fma(teacher_weight, kl_term(p, m, m_over_p), student_value), student_value, zero - student_weight * m_over_q};
}

}  // namespace
}  // namespace sad::cpu
