// Gradients that are exactly 0.
#pragma once

#include <cstdint>
#include <cstring>

#include "span_kl_params.h"

namespace sad::cpu {

inline void fill_zeros(const SpanKlParams& a, std::int64_t row, std::int64_t from_column) {
    const std::size_t size = size_of(a.grad.dtype);
    char* start = static_cast<char*>(a.grad.data) + static_cast<std::size_t>(a.grad.offset(row) + from_column) * size;
    std::memset(start, 0, static_cast<std::size_t>(a.student_columns - from_column) * size);
}

}  // namespace sad::cpu
