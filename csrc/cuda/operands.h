// What the host makes of a launch's operands before it chooses kernels.
#pragma once

#include <cstdint>

#include "divergence.cuh"
#include "kernels.h"
#include "span_kl_params.h"

namespace sad::cuda {

inline Kernels kernels_of(Dtype dtype) {
    return dtype == Dtype::bfloat16 ? bfloat16_kernels() : dtype == Dtype::float16 ? float16_kernels() : float32_kernels();
}

// Whether row i of a and row i of b begin equally far from a multiple of 16 bytes, for every i.
template <typename A, typename B>
bool same_phase(const Rows<A>& a, const Rows<B>& b) {
    if (a.dtype != b.dtype) return false;
    const std::int64_t size = size_of(a.dtype), group = 16 / size;
    const auto phase = [&](const void* data) {
        return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data)) / size % group;
    };
    if (phase(a.data) != phase(b.data)) return false;
    std::int64_t a_inner = a.inner, a_outer = a.outer_stride, b_inner = b.inner, b_outer = b.outer_stride;
    if (a_outer == 0) a_inner = b_inner, a_outer = b_inner * a.inner_stride;  // one stride: cut it where the other has two
    if (b_outer == 0) b_inner = a_inner, b_outer = a_inner * b.inner_stride;
    const auto whole_groups = [&](std::int64_t stride) { return stride % group == 0; };
    if (whole_groups(a_outer) && whole_groups(a.inner_stride) && whole_groups(b_outer) && whole_groups(b.inner_stride)) {
        return true;
    }
    return a_inner == b_inner && whole_groups(a_outer - b_outer) && whole_groups(a.inner_stride - b.inner_stride);
}

inline Exponent exponent_of(const Side& side, float temperature) {
    const bool capped = side.cap != 0.0f;
    return {static_cast<float>((capped ? side.cap : side.scale) * log2e / temperature),
            capped ? side.scale / side.cap : 1.0f, capped};
}

}  // namespace sad::cuda
