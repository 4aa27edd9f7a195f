// The passes over a piece of a row. Each instruction set includes this file once, after the header that defines `Vec`.
//
// Exponents are base 2, so that exp(z / T - lse) is one subtraction, one multiply-add and 2^x. The first pass computes the
// log-sum-exps. The second pass computes the divergence while the rows are in the cache, and the gradient of the forward KL.
// The gradients of reverse KL and JSD need E_q[G] of the row, so they are a third pass. Sums over a block are float, sums
// over blocks are double, always in the same order.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "blocks.h"
#include "dispatch.h"
#include "divergence.h"

namespace sad::cpu {
namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

// Flushes results below 2^-126 to 0 during its lifetime, because each denormal result costs about 100 cycles.
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

template <typename T>
inline float max_of(const T* x, std::int64_t n) {
    Vec top = Vec::set(-inf);
    for_vectors(n, [&](std::int64_t i, int count) { top = max(load(x + i, count), top); });
    return reduce_max(top);
}

// The largest exponent of a sum. A float could hold larger powers, but the rounding error grows with the
// exponent: 2e-7 at 4, 2e-6 at 40.
constexpr float headroom = 4.0f;

struct BlockSum {
    float max, sum;
};

// Returns the maximum of x and the sum of 2^(factor (x - origin)). One loop for both overlaps memory reads and arithmetic.
template <typename T>
inline BlockSum sum_block(const T* x, std::int64_t n, float factor, float origin) {
    Vec top = Vec::set(-inf), sum = Vec::set(0.0f);
    const Vec scale = Vec::set(factor), zero_point = Vec::set(origin);
    for_vectors(n, [&](std::int64_t i, int count) {
        const Vec column = load(x + i, count);
        top = max(column, top);
        sum = sum + exp2(scale * (column - zero_point));
    });
    return {reduce_max(top), reduce_add(sum)};
}

template <typename T>
std::int64_t find(const T* x, std::int64_t n, float value) {
    return std::find_if(x, x + n, [value](T element) { return to_float(element) == value; }) - x;
}

// Returns the sum over a piece. read(begin, n) returns a block and is called once per block, in order.
template <typename T, typename Read>
ExpSum sum_exps_of_blocks(float factor, Piece piece, const Read& read) {
    ExpSum result;
    float top = -inf;
    const auto move_origin = [&](float origin) {
        if (result.sum != 0.0)
            result.sum *= std::exp2(static_cast<double>(factor) * (static_cast<double>(result.origin) - origin));
        result.origin = origin;
    };
    for (std::int64_t begin = piece.begin; begin < piece.end; begin += block_columns) {
        const std::int64_t n = std::min(block_columns, piece.end - begin);
        const T* x = read(begin, n);
        BlockSum block{-inf, 0.0f};
        const bool empty = top == -inf;  // all logits so far are -inf
        if (empty) {
            block.max = max_of(x, n);
        } else {
            block = sum_block(x, n, factor, result.origin);
        }
        if (empty || factor * (block.max - result.origin) > headroom) {
            if (block.max > -inf) move_origin(block.max);
            block = sum_block(x, n, factor, result.origin);
        }
        top = std::max(top, block.max);
        result.sum += block.sum;
    }
    if (top > result.origin) move_origin(top);
    return result;
}

template <typename T>
ExpSum sum_exps_as(const SpanKlParams& params, const Logits& side, Piece piece) {
    const LogitReader reader(side, piece.row, params.temperature);
    BlockBuffer buffer;
    return sum_exps_of_blocks<T>(reader.factor(), piece, [&](std::int64_t begin, std::int64_t n) {
        return reader.template read<T>(begin, n, buffer);
    });
}

ExpSum sum_exps(const SpanKlParams& params, const Logits& side, Piece piece) {
    const FlushDenormals flush;
    return with_type(pass_dtype(side, side),
                     [&](auto element) { return sum_exps_as<decltype(element)>(params, side, piece); });
}

Argmax find_argmax(const SpanKlParams& params, const Logits& side, Piece piece) {
    const LogitReader reader(side, piece.row, params.temperature);
    return with_type(side.rows.dtype, [&](auto element) {
        Argmax best{-inf, piece.begin};
        for (std::int64_t begin = piece.begin; begin < piece.end; begin += block_columns) {
            const std::int64_t n = std::min(block_columns, piece.end - begin);
            const auto* x = reader.template stored<decltype(element)>(begin);
            const float top = max_of(x, n);
            if (top > best.logit) best = {top, begin + find(x, n, top)};
        }
        return best;
    });
}

// A logit minus the log-sum-exp, base 2.
struct LogProbability {
    LogProbability(float c, LogSumExp log_sum_exp)
        : factor(Vec::set(c)),
          origin(Vec::set(log_sum_exp.origin)),
          minus_log2_sum(Vec::set(-static_cast<float>(log_sum_exp.log2_sum))) {}
    Vec operator()(Vec y) const { return fma(y - origin, factor, minus_log2_sum); }
    Vec factor, origin, minus_log2_sum;
};

// Student and teacher logits of a row, and their log-probabilities.
class RowPair {
 public:
    RowPair(const SpanKlParams& params, std::int64_t row, LogSumExps log_sum_exps)
        : student(params.student, row, params.temperature),
          teacher(params.teacher, row, params.temperature),
          q_(student.factor(), log_sum_exps.student),
          p_(teacher.factor(), log_sum_exps.teacher) {}

    Vec log_q(Vec s) const { return q_(s); }
    Vec log_p(Vec t) const { return p_(t); }

    LogitReader student, teacher;

 private:
    LogProbability q_, p_;
};

template <typename T, Divergence D, bool WithGrad, bool WithStats>
DivergenceSums sum_divergence_as(const SpanKlParams& params, Piece piece, LogSumExps log_sum_exps) {
    static_assert(D == Divergence::forward || !WithGrad, "the gradients of reverse and jsd need E_q[G] first");
    const RowPair pair(params, piece.row, log_sum_exps);
    const Mixture mixture(D == Divergence::jsd ? params.beta : 0.5);
    const GradWriter writer(params.grad, piece.row);
    const float scale = WithGrad ? params.weights[piece.row] / params.temperature * params.student.scale : 0.0f;
    const Vec zero = Vec::set(0.0f), weight = Vec::set(scale);
    const bool capped = WithGrad && pair.student.is_capped();
    DivergenceSums sums;
    BlockBuffer s_buffer, t_buffer, g_buffer;
    for (std::int64_t begin = piece.begin; begin < piece.end; begin += block_columns) {
        const std::int64_t n = std::min(block_columns, piece.end - begin);
        const T* s = pair.student.template read<T>(begin, n, s_buffer);
        const T* t = pair.teacher.template read<T>(begin, n, t_buffer);
        T* grad = WithGrad ? writer.block<T>(begin, g_buffer) : nullptr;
        Vec value = zero, mean_dlogp = zero, entropy_s = zero, entropy_t = zero;
        const auto column_at = [&](std::int64_t i, int count, bool with_cap) {
            const Vec log_q = pair.log_q(load(s + i, count)), log_p = pair.log_p(load(t + i, count));  // base 2
            const Vec q = exp2(log_q), p = exp2(log_p);
            const ColumnTerms c = column_terms<D>(p, q, log_q - log_p, mixture);
            value = value + c.value;
            if constexpr (D == Divergence::jsd) mean_dlogp = mean_dlogp + c.mean_dlogp_term;
            if constexpr (WithStats) {
                entropy_s = entropy_s - select(equal(q, zero), zero, q * log_q);
                entropy_t = entropy_t - select(equal(p, zero), zero, p * log_p);
            }
            if constexpr (WithGrad) {
                Vec g = weight * (q - p);
                if (with_cap) {
                    const Vec th = load(s + i, count);
                    g = g * (Vec::set(1.0f) - th * th);
                }
                store(g, grad + i, count);
            }
        };
        if (capped) {
            for_vectors(n, [&](std::int64_t i, int count) { column_at(i, count, true); });
        } else {
            for_vectors(n, [&](std::int64_t i, int count) { column_at(i, count, false); });
        }
        if (WithGrad) writer.finish<T>(begin, n, g_buffer);
        sums.value += reduce_add(value);
        if (D == Divergence::jsd) sums.mean_dlogp += reduce_add(mean_dlogp);
        if (WithStats) {
            sums.teacher_entropy += reduce_add(entropy_t) * ln2;
            sums.student_entropy += reduce_add(entropy_s) * ln2;
        }
    }
    if (D == Divergence::reverse) sums.mean_dlogp = sums.value;
    return sums;
}

template <typename T>
DivergenceSums sum_divergence_stored(const SpanKlParams& params, Piece piece, LogSumExps log_sum_exps, bool with_grad) {
    constexpr auto forward = Divergence::forward, reverse = Divergence::reverse, jsd = Divergence::jsd;
    const bool stats = params.entropies != nullptr;
    const auto run =
        params.divergence == reverse
            ? (stats ? sum_divergence_as<T, reverse, false, true> : sum_divergence_as<T, reverse, false, false>)
        : params.divergence == jsd
            ? (stats ? sum_divergence_as<T, jsd, false, true> : sum_divergence_as<T, jsd, false, false>)
        : stats ? (with_grad ? sum_divergence_as<T, forward, true, true> : sum_divergence_as<T, forward, false, true>)
                : (with_grad ? sum_divergence_as<T, forward, true, false> : sum_divergence_as<T, forward, false, false>);
    return run(params, piece, log_sum_exps);
}

DivergenceSums sum_divergence(const SpanKlParams& params, Piece piece, LogSumExps log_sum_exps, bool with_grad) {
    const FlushDenormals flush;
    return with_type(pass_dtype(params.student, params.teacher), [&](auto element) {
        return sum_divergence_stored<decltype(element)>(params, piece, log_sum_exps, with_grad);
    });
}

template <typename T, Divergence D>
void gradient_as(const SpanKlParams& params, Piece piece, LogSumExps log_sum_exps, double mean_dlogp) {
    const RowPair pair(params, piece.row, log_sum_exps);
    const Mixture mixture(D == Divergence::jsd ? params.beta : 0.5);
    const GradWriter writer(params.grad, piece.row);
    const Vec zero = Vec::set(0.0f),
              weight = Vec::set(params.weights[piece.row] / params.temperature * params.student.scale);
    const Vec mean = Vec::set(static_cast<float>(mean_dlogp));
    BlockBuffer s_buffer, t_buffer, g_buffer;
    for (std::int64_t begin = piece.begin; begin < piece.end; begin += block_columns) {
        const std::int64_t n = std::min(block_columns, piece.end - begin);
        const T* s = pair.student.template read<T>(begin, n, s_buffer);
        const T* t = pair.teacher.template read<T>(begin, n, t_buffer);
        T* grad = writer.block<T>(begin, g_buffer);
        for_vectors(n, [&](std::int64_t i, int count) {
            const Vec log_q = pair.log_q(load(s + i, count)), log_p = pair.log_p(load(t + i, count));
            const Vec q = exp2(log_q), p = exp2(log_p);
            Vec g = q - p;
            if constexpr (D != Divergence::forward) {
                const Vec centered = column_terms<D>(p, q, log_q - log_p, mixture).dlogp - mean;
                g = select(equal(q, zero), zero, q * centered);
            }
            g = weight * g;
            if (pair.student.is_capped()) {
                const Vec th = load(s + i, count);
                g = g * (Vec::set(1.0f) - th * th);
            }
            store(g, grad + i, count);
        });
        writer.finish<T>(begin, n, g_buffer);
    }
}

void gradient(const SpanKlParams& params, Piece piece, LogSumExps log_sum_exps, double mean_dlogp) {
    const FlushDenormals flush;
    with_type(pass_dtype(params.student, params.teacher), [&](auto element) {
        using T = decltype(element);
        const auto run = params.divergence == Divergence::reverse ? gradient_as<T, Divergence::reverse>
                         : params.divergence == Divergence::jsd   ? gradient_as<T, Divergence::jsd>
                                                                  : gradient_as<T, Divergence::forward>;
        run(params, piece, log_sum_exps, mean_dlogp);
    });
}

template <typename T>
void scale_columns(T* grad, std::int64_t columns, float number) {
    const Vec factor = Vec::set(number);
    for_vectors(columns, [&](std::int64_t i, int count) { store(load(grad + i, count) * factor, grad + i, count); });
}

void scale(Rows<void> grad, std::int64_t row, std::int64_t columns, float factor) {
    with_type(grad.dtype, [&](auto element) {
        scale_columns(static_cast<decltype(element)*>(grad.data) + grad.offset(row), columns, factor);
    });
}

}  // namespace
}  // namespace sad::cpu
