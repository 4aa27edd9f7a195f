// The passes of the top-k losses over the student's row. Each instruction set includes this file once, after the header that
// defines `Vec`.
#pragma once

#include <algorithm>

#include "row_passes.h"

namespace sad::cpu {
namespace {

template <typename T>
ExpSum sum_exps_except_as(const SpanKlParams& params, Piece piece, ExcludedColumns excluded) {
    const LogitReader reader(params.student, piece.row, params.temperature);
    BlockBuffer buffer;
    alignas(64) T others[block_columns];
    const std::int32_t* next = excluded.begin;
    return sum_exps_of_blocks<T>(reader.factor(), piece, [&](std::int64_t begin, std::int64_t n) -> const T* {
        const T* x = reader.template read<T>(begin, n, buffer);
        if (next == excluded.end || *next >= begin + n) return x;
        std::copy(x, x + n, others);
        for (; next != excluded.end && *next < begin + n; ++next) from_float(-inf, others[*next - begin]);
        return others;
    });
}

ExpSum sum_exps_except(const SpanKlParams& params, Piece piece, ExcludedColumns excluded) {
    const FlushDenormals flush;
    return with_type(pass_dtype(params.student, params.student),
                     [&](auto element) { return sum_exps_except_as<decltype(element)>(params, piece, excluded); });
}

template <typename T>
double entropy_as(const SpanKlParams& params, Piece piece, LogSumExp log_sum_exp) {
    const LogitReader reader(params.student, piece.row, params.temperature);
    const LogProbability log_probability(reader.factor(), log_sum_exp);
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

double entropy(const SpanKlParams& params, Piece piece, LogSumExp log_sum_exp) {
    const FlushDenormals flush;
    return with_type(pass_dtype(params.student, params.student),
                     [&](auto element) { return entropy_as<decltype(element)>(params, piece, log_sum_exp); });
}

template <typename T>
void write_scaled_softmax_as(const SpanKlParams& params, Piece piece, LogSumExp log_divisor, float sign) {
    const LogitReader reader(params.student, piece.row, params.temperature);
    const GradWriter writer(params.grad, piece.row);
    const LogProbability log2_of(reader.factor(), log_divisor);
    const Vec signed_one = Vec::set(sign);
    BlockBuffer buffer, g_buffer;
    for (std::int64_t begin = piece.begin; begin < piece.end; begin += block_columns) {
        const std::int64_t n = std::min(block_columns, piece.end - begin);
        const T* x = reader.template read<T>(begin, n, buffer);
        T* grad = writer.template block<T>(begin, g_buffer);
        for_vectors(n, [&](std::int64_t i, int count) {
            const Vec column = load(x + i, count);
            Vec g = signed_one * exp2(min(Vec::set(128.0f), log2_of(column)));
            if (reader.is_capped()) g = g * (Vec::set(1.0f) - column * column);
            store(g, grad + i, count);
        });
        writer.template finish<T>(begin, n, g_buffer);
    }
}

void write_scaled_softmax(const SpanKlParams& params, Piece piece, LogSumExp log_divisor, float sign) {
    const FlushDenormals flush;
    with_type(pass_dtype(params.student, params.student),
              [&](auto element) { write_scaled_softmax_as<decltype(element)>(params, piece, log_divisor, sign); });
}

}  // namespace
}  // namespace sad::cpu
