// Rows in blocks. A pass reads the rows in the dtype that they are stored in if both sides share it. Logits of mixed dtypes
// and capped logits are first converted, block by block, to float32 in the L1 cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "dispatch.h"
#include "vec_math.h"

namespace sad::cpu {
namespace {

constexpr std::int64_t block_columns = 2048;  // 8 KB of float32: two sides and a gradient fit the L1 cache

struct BlockBuffer {
    alignas(64) float lanes[block_columns];
};

// Calls f(i, count) for the vectors of columns [0, n). `count` is Vec::width, except for a last partial vector.
template <typename F>
inline void for_vectors(std::int64_t n, const F& f) {
    std::int64_t i = 0;
    for (; i + Vec::width <= n; i += Vec::width) f(i, Vec::width);
    if (i < n) f(i, static_cast<int>(n - i));
}
template <typename T>
inline Vec load(const T* p, int count) {
    return count == Vec::width ? Vec::load(p) : Vec::load(p, count);
}
template <typename T>
inline void store(Vec x, T* p, int count) {
    if (count == Vec::width) {
        x.store(p);
    } else {
        x.store(p, count);
    }
}

template <typename From, typename To>
inline void convert(const From* from, std::int64_t n, To* to) {
    for_vectors(n, [&](std::int64_t i, int count) { store(load(from + i, count), to + i, count); });
}

// Returns the dtype that a pass reads: the dtype of both sides, or float32 if the dtypes differ or a side has a cap.
inline Dtype pass_dtype(const Logits& student, const Logits& teacher) {
    const bool alike = student.rows.dtype == teacher.rows.dtype && student.cap == 0.0f && teacher.cap == 0.0f;
    return alike ? student.rows.dtype : Dtype::float32;
}

// Calls f with a value of the C++ type of `dtype`.
template <typename F>
inline auto with_type(Dtype dtype, const F& f) {
    return dtype == Dtype::bfloat16 ? f(Bfloat16{}) : dtype == Dtype::float16 ? f(Float16{}) : f(float{});
}

// Reads one row of logits. `factor` times the values y that `read` returns are base-2 exponents.
class LogitReader {
 public:
    LogitReader(const Logits& side, std::int64_t row, float temperature)
        : dtype_(side.rows.dtype),
          capped_(side.cap != 0.0f),
          data_(side.rows.data),
          offset_(side.rows.offset(row)),
          tanh_scale_(capped_ ? side.scale / side.cap : 1.0f),
          factor_(exponent_factor(side, temperature)) {}

    bool is_capped() const { return capped_; }
    float factor() const { return factor_; }

    // Returns the logits of columns [begin, begin + n), or their tanh if the side has a cap: a pointer into the row, or into
    // `buffer` after a conversion to float32.
    template <typename T>
    const T* read(std::int64_t begin, std::int64_t n, BlockBuffer& buffer) const {
        if constexpr (std::is_same_v<T, float>) {
            const float* x = as_float32(begin, n, buffer);
            return capped_ ? tanh_of(x, n, buffer) : x;
        } else {
            (void)n, (void)buffer;
            return stored<T>(begin);
        }
    }
    template <typename T>
    const T* stored(std::int64_t begin) const {
        return static_cast<const T*>(data_) + offset_ + begin;
    }

 private:
    const float* as_float32(std::int64_t begin, std::int64_t n, BlockBuffer& buffer) const {
        if (dtype_ == Dtype::float32) return stored<float>(begin);
        with_type(dtype_, [&](auto element) { convert(stored<decltype(element)>(begin), n, buffer.lanes); });
        return buffer.lanes;
    }
    const float* tanh_of(const float* x, std::int64_t n, BlockBuffer& buffer) const {
        const Vec tanh_scale = Vec::set(tanh_scale_);
        for_vectors(
            n, [&](std::int64_t i, int count) { store(tanh(load(x + i, count) * tanh_scale), buffer.lanes + i, count); });
        return buffer.lanes;
    }

    Dtype dtype_;
    bool capped_;
    const void* data_;
    std::int64_t offset_;
    float tanh_scale_, factor_;
};

// Writes one row of the gradient, directly or through a float32 buffer. A pass fills `block`, then calls `finish`.
class GradWriter {
 public:
    GradWriter(const Rows<void>& grad, std::int64_t row)
        : dtype_(grad.dtype), data_(grad.data), offset_(grad.data ? grad.offset(row) : 0) {}

    template <typename T>
    T* block(std::int64_t begin, BlockBuffer& buffer) const {
        if constexpr (std::is_same_v<T, float>) {
            if (dtype_ != Dtype::float32) return buffer.lanes;
        }
        return stored<T>(begin);
    }
    template <typename T>
    void finish(std::int64_t begin, std::int64_t n, const BlockBuffer& buffer) const {
        if (!std::is_same_v<T, float> || dtype_ == Dtype::float32) return;
        with_type(dtype_, [&](auto element) { convert(buffer.lanes, n, stored<decltype(element)>(begin)); });
    }

 private:
    template <typename T>
    T* stored(std::int64_t begin) const {
        return static_cast<T*>(data_) + offset_ + begin;
    }

    Dtype dtype_;
    void* data_;
    std::int64_t offset_;
};

}  // namespace
}  // namespace sad::cpu
