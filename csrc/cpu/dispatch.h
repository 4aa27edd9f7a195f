// The passes over a piece of a row, compiled once per instruction set, and the choice of an instruction set at run time.
//
// Exponents are base 2: a = z log2(e) / T = factor y, where y is the logit x or, with a cap, tanh(scale x / cap). The passes
// compute factor (y - origin) with the largest y of the row as the origin. This difference keeps its digits at any magnitude
// of y; the difference of two products would not.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace sad::cpu {

// The factor of the exponents of one side.
inline float exponent_factor(const Logits& side, float temperature) {
    return static_cast<float>((side.cap != 0.0f ? side.cap : side.scale) * log2e / temperature);
}

// A sum of 2^(factor (y - origin)) over columns. The origin is their largest y, or 0 if every y is -inf.
struct ExpSum {
    double sum = 0.0;
    float origin = 0.0f;
};

// The log-sum-exp factor origin + log2_sum of a row, base 2.
struct LogSumExp {
    float origin = 0.0f;
    double log2_sum = 0.0;
};

// The largest logit (before scale and cap), and the lowest column that has it.
struct Argmax {
    float logit;
    std::int64_t column;
};

// Sums over columns: the divergence, E_q[G] and the entropies in nats.
struct DivergenceSums {
    double value = 0.0, mean_dlogp = 0.0;
    double teacher_entropy = 0.0, student_entropy = 0.0;
};

// Columns [begin, end) of a row.
struct Piece {
    std::int64_t row, begin, end;
};

struct LogSumExps {
    LogSumExp student, teacher;
};

// Columns that a pass leaves out, in ascending order.
struct ExcludedColumns {
    const std::int32_t *begin, *end;
};

// The passes compiled for one instruction set.
struct RowPasses {
    const char* isa;
    bool supported;
    ExpSum (*sum_exps)(const SpanKlParams&, const Logits&, Piece);
    Argmax (*find_argmax)(const SpanKlParams&, const Logits&, Piece);
    // Sums the divergence. With `with_grad`, which only the forward KL supports, writes the gradient too.
    DivergenceSums (*sum_divergence)(const SpanKlParams&, Piece, LogSumExps, bool with_grad);
    void (*gradient)(const SpanKlParams&, Piece, LogSumExps, double mean_dlogp);
    void (*scale)(Rows<void> grad, std::int64_t row, std::int64_t columns, float factor);
    // The passes below read the student only.
    ExpSum (*sum_exps_except)(const SpanKlParams&, Piece, ExcludedColumns);
    double (*entropy)(const SpanKlParams&, Piece, LogSumExp);  // in nats
    // Writes the gradient sign 2^a / divisor, times dz / dx without the scale. `log_divisor` has the form of a log-sum-exp.
    void (*write_scaled_softmax)(const SpanKlParams&, Piece, LogSumExp log_divisor, float sign);
};

RowPasses portable_passes();
#if defined(SAD_X86)
RowPasses avx2_passes();
RowPasses avx512_passes();
RowPasses avx512_bf16_passes();
#endif

// Returns the passes of all instruction sets in this build, best first. "portable" is always present and supported.
inline const std::vector<RowPasses>& all_row_passes() {
    static const std::vector<RowPasses> all = [] {
        std::vector<RowPasses> list;
#if defined(SAD_X86)
        const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        list.push_back(avx512_bf16_passes());
        list.back().supported = avx512 && __builtin_cpu_supports("avx512bf16");
        list.push_back(avx512_passes());
        list.back().supported = avx512;
        list.push_back(avx2_passes());
        list.back().supported =
            __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
        list.push_back(portable_passes());
        list.back().supported = true;
        return list;
    }();
    return all;
}

// Returns the passes of the named instruction set, or of the best supported one for ""; null if this processor has none.
inline const RowPasses* row_passes_for(const std::string& isa) {
    for (const RowPasses& passes : all_row_passes()) {
        if (passes.supported && (isa.empty() || isa == passes.isa)) return &passes;
    }
    return nullptr;
}

}  // namespace sad::cpu
