// Shared by `span_kl.cpp` and `topk_span_kl.cpp`: the number of useful threads, and gradients that are 0.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "params.h"

namespace sad::cpu {

// Returns the number of threads, at most `threads`, that have enough work when `supervised` of the rows are read.
inline int useful_threads(const SpanKlParams& params, std::int64_t supervised, int threads) {
    constexpr std::int64_t columns_per_thread = 500'000;  // about 500 us of work; starting a thread costs up to 100 us
    const std::int64_t work = supervised * params.vocab + params.rows * params.vocab / 8;
    return static_cast<int>(std::min<std::int64_t>(threads, 1 + work / columns_per_thread));
}

// Writes 0 to the gradient of a row from column `from_column` on.
inline void zero_gradient(const SpanKlParams& params, std::int64_t row, std::int64_t from_column) {
    const std::size_t size = size_of(params.grad.dtype);
    const auto first = static_cast<std::size_t>(params.grad.offset(row) + from_column);
    std::memset(static_cast<char*>(params.grad.data) + first * size, 0,
                static_cast<std::size_t>(params.student_columns - from_column) * size);
}

}  // namespace sad::cpu
