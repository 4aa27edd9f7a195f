// The terms of one column in the divergence and in its gradient. Uses `Vec`, which another header defines before this one.
#pragma once

#include <algorithm>
#include <cmath>

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

// The weights of the mixture m = teacher p + student q, and the border between two ways to compute log m. Both weights are
// rounded from double, because near the ends of beta the smaller one is all of the result.
//
//   log(m / q) = log1p(teacher (p / q - 1))  if r >= border
//   log(m / p) = log1p(student (q / p - 1))  otherwise
//
// and the other one differs from it by r. At this border neither a log1p nor the difference cancels: the argument of log1p
// is at most 1/3 if its weight is the smaller one, and at least -1/2 or far from 0 if not.
struct Mixture {
    explicit Mixture(double beta)
        : teacher(Vec::set(static_cast<float>(beta))), student(Vec::set(static_cast<float>(1.0 - beta))) {
        const double distance = std::min(126.0, std::log2(1.0 + 1.0 / (3.0 * std::min(beta, 1.0 - beta))));
        log2_border = Vec::set(static_cast<float>(beta <= 0.5 ? -distance : distance));
    }
    Vec teacher, student, log2_border;
};

// Returns the terms from p, q and r2 = log2 q - log2 p. Only jsd uses the mixture.
template <Divergence D>
inline ColumnTerms column_terms(Vec p, Vec q, Vec r2, const Mixture& mixture) {
    const Vec zero = Vec::set(0.0f), one = Vec::set(1.0f);
    const Vec r = r2 * Vec::set(static_cast<float>(ln2));
    if constexpr (D == Divergence::forward) return {kl_term(p, q, r), zero, zero};
    if constexpr (D == Divergence::reverse) return {kl_term(q, p, zero - r), zero, r};
    const auto by_p = less(r2, mixture.log2_border);
    const Vec weight = select(by_p, mixture.student, mixture.teacher),
              other = select(by_p, mixture.teacher, mixture.student);
    const Vec ratio = exp2(select(by_p, r2, zero - r2));
    const Vec log_m = log(fma(weight, ratio, other), weight * (ratio - one));
    const Vec m_over_p = select(by_p, log_m, log_m + r), m_over_q = select(by_p, log_m - r, log_m);
    const Vec m = fma(mixture.teacher, p, mixture.student * q);
    const Vec student_value = mixture.student * kl_term(q, m, m_over_q);
    return {fma(mixture.teacher, kl_term(p, m, m_over_p), student_value), student_value, zero - mixture.student * m_over_q};
}

}  // namespace
}  // namespace sad::cpu
