// The span KL of a row in terms of `Vec`; included once per instruction set, after the header that defines `Vec`.
//
// Exponents are base 2, so that exp((x - lse) / T) is one multiply-add, one subtraction and 2^x. Two passes over the
// vocabulary: the first, block by block, finds the log-sum-exps; the second, while the rows are still in the cache,
// the KL and the gradient. Sums over a block are float, sums over blocks double, always in the same order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "span_kl.h"

namespace sad::cpu {
namespace {

constexpr std::int64_t block = 2048;  // columns; 8 KB of float32 twice stay in the first-level cache
constexpr double log2e = 1.4426950408889634, ln2 = 0.6931471805599453;
constexpr float inf = std::numeric_limits<float>::infinity();

// Results below 2^-126 become 0 while this lives: an assist for every denormal probability would cost 100 cycles each.
class FlushDenormals {
#if defined(__SSE2__)
 public:
    FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
    unsigned saved_;
#else
 public:
    FlushDenormals() {}
#endif
};

inline Vec polynomial(Vec x, float c) {
    (void)x;
    return Vec::set(c);
}
template <typename... Rest>
inline Vec polynomial(Vec x, float c, Rest... rest) {  // c + x (rest[0] + x (...)), lowest order first
    return fma(polynomial(x, rest...), x, Vec::set(c));
}

inline Vec exp2(Vec x) {  // minimax on [-1/2, 1/2], relative error 2e-9 before rounding
    const Vec f = Vec::fraction(x);
    return Vec::times_pow2(
        polynomial(f, 1.0f, 0.69314718f, 0.24022646f, 0.055503286f, 0.0096184891f, 0.0013399931f, 0.00015345812f), x);
}

inline Vec expm1_minus_x_over_x2(Vec x) {  // (expm1(x) - x) / x^2, minimax on [-1/2, 1/2], relative error 3e-8
    return polynomial(x, 0.5f, 0.16666667f, 0.041665796f, 0.0083334521f, 0.0013981997f, 0.00019875632f);
}

// log2 of the sum over a row of 2^(c x), in two floats, so that c x - high - low keeps its digits.
struct LogSum {
    float high, low;

    explicit LogSum(double value) : high(static_cast<float>(value)), low(static_cast<float>(value - high)) {}
    double value() const { return static_cast<double>(high) + low; }
};

template <typename T>
inline Vec load(const T* p, std::int64_t left) {
    return left >= Vec::width ? Vec::load(p) : Vec::load(p, static_cast<int>(left));
}

struct RowSummary {
    double log2_sum;
    std::int64_t argmax;  // the lowest of the best columns; only with `FindArgmax`
};

template <bool FindArgmax, typename T>
RowSummary summarize(const T* x, std::int64_t vocab, float c) {
    float best = -inf;
    float shift = 0.0f;  // c * best where that is not -inf
    double sum = 0.0;
    std::int64_t argmax = 0;
    for (std::int64_t begin = 0; begin < vocab; begin += block) {
        const std::int64_t end = std::min(begin + block, vocab);
        Vec most = Vec::set(-inf);
        for (std::int64_t i = begin; i < end; i += Vec::width) most = max(load(x + i, end - i), most);
        const float block_best = reduce_max(most);
        if (block_best > best) {
            const float new_shift = c * block_best;
            sum = best == -inf ? 0.0 : sum * std::exp2(static_cast<double>(shift) - new_shift);
            best = block_best;
            shift = new_shift;
            if (FindArgmax) {
                argmax = begin;
                while (to_float(x[argmax]) != best) ++argmax;
            }
        }
        Vec partial = Vec::set(0.0f);
        const Vec scale = Vec::set(c), minus_shift = Vec::set(-shift);
        for (std::int64_t i = begin; i < end; i += Vec::width) {
            partial = partial + exp2(fma(load(x + i, end - i), scale, minus_shift));
        }
        sum += reduce_add(partial);
    }
    return {static_cast<double>(shift) + std::log2(sum), argmax};
}

struct RowSums {
    double kl = 0.0, teacher_entropy = 0.0, student_entropy = 0.0;
};

template <bool WithKl, bool WithGrad, bool WithStats, typename S, typename T>
RowSums second_pass(const S* s, const T* t, S* grad, std::int64_t vocab, float c, LogSum lse_s, LogSum lse_t, float w) {
    const Vec scale = Vec::set(c), zero = Vec::set(0.0f), weight = Vec::set(w);
    const Vec s_high = Vec::set(-lse_s.high), s_low = Vec::set(lse_s.low);
    const Vec t_high = Vec::set(-lse_t.high), t_low = Vec::set(lse_t.low);
    RowSums sums;
    for (std::int64_t begin = 0; begin < vocab; begin += block) {
        const std::int64_t end = std::min(begin + block, vocab);
        Vec kl = zero, entropy_s = zero, entropy_t = zero;
        for (std::int64_t i = begin; i < end; i += Vec::width) {
            const Vec log_q = fma(load(s + i, end - i), scale, s_high) - s_low;  // base 2
            const Vec log_p = fma(load(t + i, end - i), scale, t_high) - t_low;
            const Vec q = exp2(log_q), p = exp2(log_p);
            if (WithKl) {
                const Vec r = (log_q - log_p) * Vec::set(static_cast<float>(ln2));
                const Vec near = p * (expm1_minus_x_over_x2(r) * (r * r));
                const Vec far = select(equal(p, zero), q, (q - p) - p * r);
                kl = kl + select(less_abs(r, Vec::set(0.5f)), near, far);
            }
            if (WithStats) {
                entropy_s = entropy_s - select(equal(q, zero), zero, q * log_q);
                entropy_t = entropy_t - select(equal(p, zero), zero, p * log_p);
            }
            if (WithGrad) {
                const Vec g = weight * (q - p);
                if (end - i >= Vec::width) {
                    g.store(grad + i);
                } else {
                    g.store(grad + i, static_cast<int>(end - i));
                }
            }
        }
        if (WithKl) sums.kl += reduce_add(kl);
        if (WithStats) {
            sums.teacher_entropy += reduce_add(entropy_t) * ln2;
            sums.student_entropy += reduce_add(entropy_s) * ln2;
        }
    }
    return sums;
}

template <typename S, typename T>
void row(const SpanKlParams& a, std::int64_t n) {
    S* grad = a.grad.data ? static_cast<S*>(a.grad.data) + a.grad.offset(n) : nullptr;
    const bool read = a.kinds[n] != 0;
    const bool with_grad = grad && read && a.weights[n] != 0.0f;
    RowSums sums;
    RowSummary of_s{0.0, 0}, of_t{0.0, 1};
    if (read && (with_grad || !a.lse_given)) {
        const S* s = static_cast<const S*>(a.student.data) + a.student.offset(n);
        const T* t = static_cast<const T*>(a.teacher.data) + a.teacher.offset(n);
        const float c = static_cast<float>(log2e / a.temperature);
        if (a.lse_given) {
            of_s.log2_sum = a.lse_given[n] * log2e;
            of_t.log2_sum = a.lse_given[a.rows + n] * log2e;
        } else if (a.extras) {
            of_s = summarize<true>(s, a.vocab, c);
            of_t = summarize<true>(t, a.vocab, c);
        } else {
            of_s = summarize<false>(s, a.vocab, c);
            of_t = summarize<false>(t, a.vocab, c);
        }
        const auto pass = a.lse_given ? second_pass<false, true, false, S, T>
                          : a.extras
                              ? (with_grad ? second_pass<true, true, true, S, T> : second_pass<true, false, true, S, T>)
                              : (with_grad ? second_pass<true, true, false, S, T> : second_pass<true, false, false, S, T>);
        const float w = with_grad ? a.weights[n] / a.temperature : 0.0f;
        sums = pass(s, t, grad, a.vocab, c, LogSum(of_s.log2_sum), LogSum(of_t.log2_sum), w);
    }
    if (grad) {
        const std::int64_t written = with_grad ? a.vocab : 0;
        std::memset(static_cast<void*>(grad + written), 0,
                    static_cast<std::size_t>(a.student_columns - written) * sizeof(S));
    }
    if (a.kl) {
        a.kl[n] = static_cast<float>(sums.kl);
        a.lse[n] = static_cast<float>(of_s.log2_sum * ln2);
        a.lse[a.rows + n] = static_cast<float>(of_t.log2_sum * ln2);
    }
    if (a.extras) {
        a.extras[n] = static_cast<float>(sums.teacher_entropy);
        a.extras[a.rows + n] = static_cast<float>(sums.student_entropy);
        a.extras[2 * a.rows + n] = of_s.argmax == of_t.argmax ? 1.0f : 0.0f;
    }
}

template <typename S, typename T>
void rows_of(const SpanKlParams& a, std::int64_t begin, std::int64_t end) {
    const FlushDenormals flush;
    for (std::int64_t n = begin; n < end; ++n) row<S, T>(a, n);
}

template <typename S>
SpanKlRows for_teacher(Dtype teacher) {
    return teacher == Dtype::float32    ? rows_of<S, float>
           : teacher == Dtype::bfloat16 ? rows_of<S, Bfloat16>
                                        : rows_of<S, Float16>;
}

inline SpanKlRows span_kl_rows_for(const SpanKlParams& a) {
    return a.student.dtype == Dtype::float32    ? for_teacher<float>(a.teacher.dtype)
           : a.student.dtype == Dtype::bfloat16 ? for_teacher<Bfloat16>(a.teacher.dtype)
                                                : for_teacher<Float16>(a.teacher.dtype);
}

template <typename S>
void scale_rows_of(const ScaleParams& a, std::int64_t begin, std::int64_t end) {
    const Vec factor = Vec::set(a.factor);
    for (std::int64_t n = begin; n < end; ++n) {
        if (a.kinds[n] == 0) continue;
        S* grad = static_cast<S*>(a.grad.data) + a.grad.offset(n);
        std::int64_t i = 0;
        for (; i + Vec::width <= a.columns; i += Vec::width) (Vec::load(grad + i) * factor).store(grad + i);
        for (; i < a.columns; ++i) from_float(to_float(grad[i]) * a.factor, grad[i]);
    }
}

inline ScaleRows scale_rows_for(const ScaleParams& a) {
    return a.grad.dtype == Dtype::float32    ? scale_rows_of<float>
           : a.grad.dtype == Dtype::bfloat16 ? scale_rows_of<Bfloat16>
                                             : scale_rows_of<Float16>;
}

}  // namespace
}  // namespace sad::cpu
