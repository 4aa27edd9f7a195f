// The passes over a piece of a row in terms of `Vec`; included once per instruction set, after the header that defines it.
//
// Exponents are base 2, so that exp((z - lse) / T) is one multiply-add, one subtraction and 2^x. The first pass, block by
// block, finds the log-sum-exps; the second, while the rows are still in the cache, the divergence and the gradient of
// forward_kl; the others' gradient needs the row's E_q[G] first and is a third. Sums over a block are float, sums over
// blocks double, always in the same order.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "blocks.h"
#include "columns.h"
#include "dispatch.h"

namespace sad::cpu {
namespace {

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

template <typename T>
inline float largest(const T* x, std::int64_t n) {
    Vec most = Vec::set(-inf);
    for_vectors(n, [&](std::int64_t i, int count) { most = max(load(x + i, count), most); });
    return reduce_max(most);
}

// How far above its shift, in powers of two, a sum may go: floats have room for more, but an exponent of 4 is rounded to
// 2e-7, one of 40 to 2e-6.
constexpr float headroom = 4.0f;

struct BlockSum {
    float best, sum;
};

// The largest of x and the sum of 2^(factor x - shift), in one go: reading from memory and computing overlap.
template <typename T>
inline BlockSum sum_block(const T* x, std::int64_t n, float factor, float shift) {
    Vec best = Vec::set(-inf), sum = Vec::set(0.0f);
    const Vec scale = Vec::set(factor), minus_shift = Vec::set(-shift);
    for_vectors(n, [&](std::int64_t i, int count) {
        const Vec column = load(x + i, count);
        best = max(column, best);
        sum = sum + exp2(fma(column, scale, minus_shift));
    });
    return {reduce_max(best), reduce_add(sum)};
}

template <typename T>
std::int64_t find(const T* x, std::int64_t n, float value) {
    return std::find_if(x, x + n, [value](T element) { return to_float(element) == value; }) - x;
}

// The sum over a piece whose blocks read(begin, n) returns, each asked for once and in order.
template <typename T, typename Read>
Summary summarize_blocks(float factor, Piece piece, const Read& read) {
    Summary result;
    bool empty = true;  // nothing but -inf so far
    for (std::int64_t begin = piece.begin; begin < piece.end; begin += block_columns) {
        const std::int64_t n = std::min(block_columns, piece.end - begin);
        const T* x = read(begin, n);
        BlockSum block{-inf, 0.0f};
        if (empty) {
            block.best = largest(x, n);
        } else {
            block = sum_block(x, n, factor, result.shift);
        }
        if (empty || factor * block.best - result.shift > headroom) {
            if (block.best > -inf) {
                const float shift = factor * block.best;
                if (!empty) result.sum *= std::exp2(static_cast<double>(result.shift) - shift);
                result.shift = shift;
                empty = false;
            }
            block = sum_block(x, n, factor, result.shift);
        }
        result.sum += block.sum;
    }
    return result;
}

template <typename T>
Summary summarize_as(const SpanKlParams& a, const Side& side, Piece piece) {
    const SideReader reader(side, piece.row, a.temperature);
    BlockBuffer buffer;
    return summarize_blocks<T>(reader.factor(), piece, [&](std::int64_t begin, std::int64_t n) {
        return reader.template read<T>(begin, n, buffer);
    });
}

Summary summarize(const SpanKlParams& a, const Side& side, Piece piece) {
    const FlushDenormals flush;
    return with_type(direct_dtype(side, side),
                     [&](auto element) { return summarize_as<decltype(element)>(a, side, piece); });
}

Best best_column(const SpanKlParams& a, const Side& side, Piece piece) {
    const SideReader reader(side, piece.row, a.temperature);
    return with_type(side.rows.dtype, [&](auto element) {
        Best best{-inf, piece.begin};
        for (std::int64_t begin = piece.begin; begin < piece.end; begin += block_columns) {
            const std::int64_t n = std::min(block_columns, piece.end - begin);
            const auto* x = reader.template stored<decltype(element)>(begin);
            const float top = largest(x, n);
            if (top > best.logit) best = {top, begin + find(x, n, top)};
        }
        return best;
    });
}

// factor x - sum, with the sum in two floats, so that the difference keeps its digits.
struct LogProbability {
    LogProbability(float c, double sum)
        : factor(Vec::set(c)),
          high(Vec::set(-static_cast<float>(sum))),
          low(Vec::set(static_cast<float>(sum - static_cast<float>(sum)))) {}
    Vec operator()(Vec x) const { return fma(x, factor, high) - low; }
    Vec factor, high, low;
};

// Two sides with their log-sum-exps.
class Pair {
 public:
    Pair(const SpanKlParams& a, std::int64_t row, LogSums sums)
        : student(a.student, row, a.temperature),
          teacher(a.teacher, row, a.temperature),
          q_(student.factor(), sums.student),
          p_(teacher.factor(), sums.teacher) {}

    Vec log_q(Vec s) const { return q_(s); }
    Vec log_p(Vec t) const { return p_(t); }

    SideReader student, teacher;

 private:
    LogProbability q_, p_;
};

template <typename T, Divergence D, bool WithGrad, bool WithStats>
Sums compare_as(const SpanKlParams& a, Piece piece, LogSums log_sums) {
    static_assert(D == Divergence::forward || !WithGrad, "the others' gradient needs E_q[G] first");
    const Pair pair(a, piece.row, log_sums);
    const GradWriter writer(a.grad, piece.row);
    const float scale = WithGrad ? a.weights[piece.row] / a.temperature * a.student.scale : 0.0f;
    const Vec zero = Vec::set(0.0f), weight = Vec::set(scale);
    const bool slope = WithGrad && pair.student.is_capped();
    Sums sums;
    BlockBuffer s_buffer, t_buffer, g_buffer;
    for (std::int64_t begin = piece.begin; begin < piece.end; begin += block_columns) {
        const std::int64_t n = std::min(block_columns, piece.end - begin);
        const T* s = pair.student.template read<T>(begin, n, s_buffer);
        const T* t = pair.teacher.template read<T>(begin, n, t_buffer);
        T* grad = WithGrad ? writer.block<T>(begin, g_buffer) : nullptr;
        Vec value = zero, pull = zero, entropy_s = zero, entropy_t = zero;
        const auto column_at = [&](std::int64_t i, int count, bool with_slope) {
            const Vec log_q = pair.log_q(load(s + i, count)), log_p = pair.log_p(load(t + i, count));  // base 2
            const Vec q = exp2(log_q), p = exp2(log_p);
            const Column c = column<D>(p, q, log_q - log_p, a.beta);
            value = value + c.value;
            if constexpr (D == Divergence::jsd) pull = pull + c.pull_value;
            if constexpr (WithStats) {
                entropy_s = entropy_s - select(equal(q, zero), zero, q * log_q);
                entropy_t = entropy_t - select(equal(p, zero), zero, p * log_p);
            }
            if constexpr (WithGrad) {
                Vec g = weight * (q - p);
                if (with_slope) {
                    const Vec th = load(s + i, count);
                    g = g * (Vec::set(1.0f) - th * th);
                }
                store(g, grad + i, count);
            }
        };
        if (slope) {
            for_vectors(n, [&](std::int64_t i, int count) { column_at(i, count, true); });
        } else {
            for_vectors(n, [&](std::int64_t i, int count) { column_at(i, count, false); });
        }
        if (WithGrad) writer.finish<T>(begin, n, g_buffer);
        sums.value += reduce_add(value);
        if (D == Divergence::jsd) sums.pull += reduce_add(pull);
        if (WithStats) {
            sums.teacher_entropy += reduce_add(entropy_t) * ln2;
            sums.student_entropy += reduce_add(entropy_s) * ln2;
        }
    }
    if (D == Divergence::reverse) sums.pull = sums.value;
    return sums;
}

template <typename T>
Sums compare_stored(const SpanKlParams& a, Piece piece, LogSums log_sums, bool with_grad) {
    constexpr auto forward = Divergence::forward, reverse = Divergence::reverse, jsd = Divergence::jsd;
    const bool stats = a.entropies != nullptr;
    const auto run = a.divergence == reverse
                         ? (stats ? compare_as<T, reverse, false, true> : compare_as<T, reverse, false, false>)
                     : a.divergence == jsd ? (stats ? compare_as<T, jsd, false, true> : compare_as<T, jsd, false, false>)
                     : stats ? (with_grad ? compare_as<T, forward, true, true> : compare_as<T, forward, false, true>)
                             : (with_grad ? compare_as<T, forward, true, false> : compare_as<T, forward, false, false>);
    return run(a, piece, log_sums);
}

Sums compare(const SpanKlParams& a, Piece piece, LogSums log_sums, bool with_grad) {
    const FlushDenormals flush;
    return with_type(direct_dtype(a.student, a.teacher),
                     [&](auto element) { return compare_stored<decltype(element)>(a, piece, log_sums, with_grad); });
}

template <typename T, Divergence D>
void gradient_as(const SpanKlParams& a, Piece piece, LogSums log_sums, double pull) {
    const Pair pair(a, piece.row, log_sums);
    const GradWriter writer(a.grad, piece.row);
    const Vec zero = Vec::set(0.0f), weight = Vec::set(a.weights[piece.row] / a.temperature * a.student.scale);
    const Vec mean = Vec::set(static_cast<float>(pull));
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
                const Vec from_mean = column<D>(p, q, log_q - log_p, a.beta).pull - mean;
                g = select(equal(q, zero), zero, q * from_mean);
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

void gradient(const SpanKlParams& a, Piece piece, LogSums log_sums, double pull) {
    const FlushDenormals flush;
    with_type(direct_dtype(a.student, a.teacher), [&](auto element) {
        using T = decltype(element);
        const auto run = a.divergence == Divergence::reverse ? gradient_as<T, Divergence::reverse>
                         : a.divergence == Divergence::jsd   ? gradient_as<T, Divergence::jsd>
                                                             : gradient_as<T, Divergence::forward>;
        run(a, piece, log_sums, pull);
    });
}

template <typename T>
void scale_columns(T* grad, std::int64_t columns, float by) {
    const Vec factor = Vec::set(by);
    for_vectors(columns, [&](std::int64_t i, int count) { store(load(grad + i, count) * factor, grad + i, count); });
}

void scale(Rows<void> grad, std::int64_t row, std::int64_t columns, float factor) {
    with_type(grad.dtype, [&](auto element) {
        scale_columns(static_cast<decltype(element)*>(grad.data) + grad.offset(row), columns, factor);
    });
}

}  // namespace
}  // namespace sad::cpu
