// The passes over a piece of a row, compiled once per instruction set, and the choice of an instruction set at run time.
// Exponents are base 2: a = z log2(e) / T.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace sad::cpu {

// A sum of 2^(a - shift) over columns.
struct ExpSum {
    double sum = 0.0;
    float shift = 0.0f;
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

// The log-sum-exps of a row, base 2.
struct LogSumExps {
    double student, teacher;
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
    double (*entropy)(const SpanKlParams&, Piece, double log_sum_exp);  // in nats
    // Writes the gradient sign 2^(a - log_divisor), times dz / dx without the scale.
    void (*write_scaled_softmax)(const SpanKlParams&, Piece, double log_divisor, float sign);
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
