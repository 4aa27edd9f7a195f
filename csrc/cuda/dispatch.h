// The host side of a launch: the kernels of each student dtype, and the operands in the form that the kernels take.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "divergence.cuh"
#include "params.h"

namespace sad::cuda {

struct LaunchArgs;      // row_task.cuh
struct TopkLaunchArgs;  // topk_sums.cuh

// The variants of a kernel that processes whole rows. `lean` kernels are compiled for the common case: the forward KL, no
// soft cap, and rows of student, teacher and gradient that are aligned alike. `general` kernels handle every case.
enum Variant { lean, lean_stats, general, variants };

// The kernels of one student dtype. Every dtype has a source file of its own, so that the files compile in parallel.
struct KernelTable {
    using RowKernel = void (*)(LaunchArgs);
    RowKernel resident[variants], streamed[variants];
    RowKernel slice_totals[2], slice_values[2];  // without and with statistics
    RowKernel gradient[2];                       // general, lean
    void (*topk[2])(TopkLaunchArgs);             // general, lean
    void (*scale)(Rows<void> grad, const std::uint8_t* kinds, const float* factor, int rows, int columns, int slices,
                  int slice_columns);
};

KernelTable float32_kernels();
KernelTable bfloat16_kernels();
KernelTable float16_kernels();

inline KernelTable kernels_for(Dtype dtype) {
    return dtype == Dtype::bfloat16 ? bfloat16_kernels() : dtype == Dtype::float16 ? float16_kernels() : float32_kernels();
}

// Returns whether row i of `a` and row i of `b` start at the same distance from a multiple of 16 bytes, for every i < rows.
template <typename A, typename B>
bool same_alignment(const Rows<A>& a, const Rows<B>& b, std::int64_t rows) {
    if (a.dtype != b.dtype) return false;
    const std::int64_t size = size_of(a.dtype), group = 16 / size;
    const auto phase = [&](const void* data) {
        return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data)) / size % group;
    };
    if (phase(a.data) != phase(b.data)) return false;
    std::int64_t a_inner = a.inner, a_outer = a.outer_stride, b_inner = b.inner, b_outer = b.outer_stride;
    // Rows with one stride are split where the other side splits its rows into two strides. An outer stride of 0 does not
    // mean one stride: it is also the stride of a broadcast dimension.
    if (a_inner >= rows) a_inner = b_inner, a_outer = b_inner * a.inner_stride;
    if (b_inner >= rows) b_inner = a_inner, b_outer = a_inner * b.inner_stride;
    const auto whole_groups = [&](std::int64_t stride) { return stride % group == 0; };
    if (whole_groups(a_outer) && whole_groups(a.inner_stride) && whole_groups(b_outer) && whole_groups(b.inner_stride)) {
        return true;
    }
    return a_inner == b_inner && whole_groups(a_outer - b_outer) && whole_groups(a.inner_stride - b.inner_stride);
}

inline Exponent exponent_of(const Logits& logits, float temperature) {
    const bool capped = logits.cap != 0.0f;
    const double factor = (capped ? logits.cap : logits.scale) * log2e / temperature;
    return {static_cast<float>(factor), capped ? logits.scale / logits.cap : 1.0f,
            static_cast<float>(std::min(1.0 / factor, 3.0e38)), capped};
}

inline Mixture mixture_of(double beta) {
    const double distance = std::min(126.0, std::log2(1.0 + 1.0 / (3.0 * std::min(beta, 1.0 - beta)))) * ln2;
    return {static_cast<float>(beta), static_cast<float>(1.0 - beta),
            static_cast<float>(beta <= 0.5 ? -distance : distance)};
}

}  // namespace sad::cuda
