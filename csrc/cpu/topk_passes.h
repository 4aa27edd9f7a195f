// The passes over a row some of whose columns are taken out, in terms of `Vec`; included once per instruction set, after
// row_passes.h.
#pragma once

#include <algorithm>

#include "row_passes.h"

namespace sad::cpu {
namespace {

template <typename T>
Summary summarize_others_as(const SpanKlParams& a, Piece piece, Taken taken) {
    const SideReader reader(a.student, piece.row, a.temperature);
    BlockBuffer buffer;
    alignas(64) T others[block_columns];
    const std::int32_t* next = taken.begin;
    return summarize_blocks<T>(reader.factor(), piece, [&](std::int64_t begin, std::int64_t n) -> const T* {
        const T* x = reader.template read<T>(begin, n, buffer);
        if (next == taken.end || *next >= begin + n) return x;
        std::copy(x, x + n, others);
        for (; next != taken.end && *next < begin + n; ++next) from_float(-inf, others[*next - begin]);
        return others;
    });
}

Summary summarize_others(const SpanKlParams& a, Piece piece, Taken taken) {
    const FlushDenormals flush;
    return with_type(direct_dtype(a.student, a.student),
                     [&](auto element) { return summarize_others_as<decltype(element)>(a, piece, taken); });
}

template <typename T>
double entropy_as(const SpanKlParams& a, Piece piece, double log_sum) {
    const SideReader reader(a.student, piece.row, a.temperature);
    const LogProbability log_probability(reader.factor(), log_sum);
    const Vec zero = Vec::set(0.0f);
    double total = 0.0;
    BlockBuffer buffer;
    for (std::int64_t begin = piece.begin; begin < piece.end; begin += block_columns) {
        const std::int64_t n = std::min(block_columns, piece.end - begin);
        const T* x = reader.template read<T>(begin, n, buffer);
        Vec entropy = zero;
        for_vectors(n, [&](std::int64_t i, int count) {
            const Vec log_q = log_probability(load(x + i, count)), q = exp2(log_q);
            entropy = entropy - select(equal(q, zero), zero, q * log_q);
        });
        total += reduce_add(entropy);
    }
    return total * ln2;
}

double entropy(const SpanKlParams& a, Piece piece, double log_sum) {
    const FlushDenormals flush;
    return with_type(direct_dtype(a.student, a.student),
                     [&](auto element) { return entropy_as<decltype(element)>(a, piece, log_sum); });
}

template <typename T>
void spread_as(const SpanKlParams& a, Piece piece, double log_divisor, float sign) {
    const SideReader reader(a.student, piece.row, a.temperature);
    const GradWriter writer(a.grad, piece.row);
    const LogProbability share(reader.factor(), log_divisor);
    const Vec signed_one = Vec::set(sign);
    BlockBuffer buffer, g_buffer;
    for (std::int64_t begin = piece.begin; begin < piece.end; begin += block_columns) {
        const std::int64_t n = std::min(block_columns, piece.end - begin);
        const T* x = reader.template read<T>(begin, n, buffer);
        T* grad = writer.template block<T>(begin, g_buffer);
        for_vectors(n, [&](std::int64_t i, int count) {
            const Vec column = load(x + i, count);
            Vec g = signed_one * exp2(share(column));
            if (reader.is_capped()) g = g * (Vec::set(1.0f) - column * column);
            store(g, grad + i, count);
        });
        writer.template finish<T>(begin, n, g_buffer);
    }
}

void spread(const SpanKlParams& a, Piece piece, double log_divisor, float sign) {
    const FlushDenormals flush;
    with_type(direct_dtype(a.student, a.student),
              [&](auto element) { spread_as<decltype(element)>(a, piece, log_divisor, sign); });
}

}  // namespace
}  // namespace sad::cpu
