// The host side of a launch: the kernels of each student dtype, and the operands in the form that the kernels take.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "divergence.cuh"
#include "params.h"

namespace sad::cuda {

struct LaunchArgs;      // row_task.cuh
struct TopkLaunchArgs;  // topk_sums.cuh

// The variants of a kernel that processes whole rows, see `Case`. All but `forward` compute the statistics. The two forward
// kernels are lean: at most 64 registers per thread.
enum Variant { forward, forward_stats, reverse, jsd, general, variants };

// The kernels of one student dtype. Every dtype has a source file of its own, so that the files compile in parallel.
struct KernelTable {
    using RowKernel = void (*)(LaunchArgs);
    RowKernel resident[variants], streamed[variants];
    RowKernel slice_totals[2], slice_values[2];  // without and with statistics
    RowKernel gradient[variants];                // the two forward kernels are the same
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

// Whether both weights are large enough for the short forms of `Mixture`, whose error is relative to 1.
inline bool jsd_is_short(double beta) { return std::min(beta, 1.0 - beta) >= 1.0 / 32; }

// Returns the coefficients of (beta log(p / m) + (1 - beta) (q / p) log(q / m)) / r^2 as a power series in r = log(q / p).
inline std::array<double, series_terms> jsd_series(double beta) {
    constexpr int terms = series_terms + 2;  // the first two are 0
    std::array<double, terms> power{}, m_by_p{}, log_m{}, series{};
    for (int k = 0; k < terms; ++k) {
        power[k] = k == 0 ? 1.0 : power[k - 1] / k;  // of e^r = q / p
        m_by_p[k] = (1.0 - beta) * power[k] + (k == 0 ? beta : 0.0);
        double product = 0.0;  // m (log m)' = m', and m_by_p[0] is 1
        for (int j = 1; j < k; ++j) product += j * log_m[j] * m_by_p[k - j];
        log_m[k] = k == 0 ? 0.0 : m_by_p[k] - product / k;
        series[k] = -beta * log_m[k];
    }
    for (int k = 0; k < terms; ++k) {
        for (int j = 0; j <= k; ++j) series[k] += (1.0 - beta) * power[k - j] * ((j == 1 ? 1.0 : 0.0) - log_m[j]);
    }
    std::array<double, series_terms> shifted{};
    std::copy(series.begin() + 2, series.end(), shifted.begin());
    return shifted;
}

inline Mixture mixture_of(double beta) {
    const double distance = std::min(126.0, std::log2(1.0 + 1.0 / (3.0 * std::min(beta, 1.0 - beta)))) * ln2;
    Mixture mixture{static_cast<float>(beta), static_cast<float>(1.0 - beta),
                    static_cast<float>(beta <= 0.5 ? -distance : distance)};
    if (!jsd_is_short(beta)) return mixture;
    const double unit = -beta * ln2;
    const std::array<double, series_terms> series = jsd_series(beta);
    mixture.short_unit = static_cast<float>(unit);
    mixture.student_by_teacher = static_cast<float>((1.0 - beta) / beta);
    for (int i = 0; i < series_terms; ++i) mixture.series[i] = static_cast<float>(series[i] / unit);
    return mixture;
}

}  // namespace sad::cuda
