// Elementary functions of `Vec`. The header that defines `Vec` is included before this one.
#pragma once

#include "kernels.h"

namespace sad::cpu {
namespace {

inline Vec polynomial(Vec, float c) { return Vec::set(c); }
template <typename... Rest>
inline Vec polynomial(Vec x, float c, Rest... rest) {  // c + x (rest[0] + x (...)), lowest order first
    return fma(polynomial(x, rest...), x, Vec::set(c));
}

inline Vec exp2(Vec x) {  // x at most 128, whose power is inf; minimax on [0, 1), relative error 8e-8 before rounding
    return Vec::times_pow2(
        polynomial(Vec::fraction(x), 1.0f, 0.693151312f, 0.24016445f, 0.0557999133f, 0.00901703014f, 0.00186713014f), x);
}

inline Vec expm1_minus_x_over_x2(Vec x) {  // (expm1(x) - x) / x^2, minimax on [-1/2, 1/2], relative error 3e-8
    return polynomial(x, 0.5f, 0.16666667f, 0.041665796f, 0.0083334521f, 0.0013981997f, 0.00019875632f);
}

// Natural, for a normal x > 0: k ln 2 + f + f^2 P(f) with 1 + f in [2/3, 4/3), relative error 3e-8. `minus_1` is x - 1,
// which has more digits than x if x is near 1.
inline Vec log(Vec x, Vec minus_1) {
    const Vec k = Vec::exponent(x), f = select(equal(k, Vec::set(0.0f)), minus_1, Vec::mantissa(x) - Vec::set(1.0f));
    const Vec p = polynomial(f, -0.499999402f, 0.333331063f, -0.250075986f, 0.200160606f, -0.164193535f, 0.139209035f,
                             -0.153727246f, 0.143742029f);
    return fma(k, Vec::set(static_cast<float>(ln2)), fma(p, f * f, f));
}

inline Vec tanh(Vec x) {  // below 0.6 minimax with relative error 3e-10 before rounding, else 1 - 2 / (1 + e^2x)
    const Vec square = x * x;
    const Vec near =
        fma(polynomial(square, -0.33333328f, 0.13333111f, -0.053934231f, 0.021629198f, -0.0079931589f, 0.0019670301f),
            square * x, x);
    const Vec power = exp2(min(Vec::set(60.0f), x * Vec::set(static_cast<float>(2 * log2e))));
    const Vec far = Vec::set(1.0f) - Vec::set(2.0f) / (Vec::set(1.0f) + power);
    return select(less(abs(x), Vec::set(0.6f)), near, far);
}

}  // namespace
}  // namespace sad::cpu
