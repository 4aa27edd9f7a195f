// The passes over a piece of a row, once per instruction set, and the choice of one at run time.
#pragma once

#include <string>
#include <vector>

#include "span_kl.h"

namespace sad::cpu {

// What a pass learns about one side of a piece: the sum of 2^(a - shift), a = z log2(e) / T.
struct Summary {
    double sum = 0.0;
    float shift = 0.0f;
};

// The largest logit as given, and the lowest column that has it.
struct Best {
    float logit;
    std::int64_t column;
};

// What the comparison of a piece adds to its row.
struct Sums {
    double value = 0.0, pull = 0.0;  // the divergence, E_q[G]
    double teacher_entropy = 0.0, student_entropy = 0.0;
};

// Columns [begin, end) of a row whose log-sum-exps (base 2) are known.
struct Piece {
    std::int64_t row, begin, end;
};
struct LogSums {
    double student, teacher;
};

// Columns left out of a pass, ascending.
struct Taken {
    const std::int32_t *begin, *end;
};

struct Kernels {
    const char* isa;
    bool supported;
    Summary (*summarize)(const SpanKlParams&, const Side&, Piece);
    Best (*best_column)(const SpanKlParams&, const Side&, Piece);
    // The divergence and, for `forward` only, its gradient if `with_grad`.
    Sums (*compare)(const SpanKlParams&, Piece, LogSums, bool with_grad);
    void (*gradient)(const SpanKlParams&, Piece, LogSums, double pull);
    void (*scale)(Rows<void> grad, std::int64_t row, std::int64_t columns, float factor);
    // Of the student alone: the sum without some columns; the entropy in nats; and the gradient sign 2^(a - log_divisor),
    // times dz / dx without the scale.
    Summary (*summarize_others)(const SpanKlParams&, Piece, Taken);
    double (*entropy)(const SpanKlParams&, Piece, double log_sum);
    void (*spread)(const SpanKlParams&, Piece, double log_divisor, float sign);
};

Kernels portable_kernels();
#if defined(SAD_X86)
Kernels avx2_kernels();
Kernels avx512_kernels();
Kernels avx512_bf16_kernels();
#endif

// Best first; "portable" is always there and always supported.
inline const std::vector<Kernels>& all_kernels() {
    static const std::vector<Kernels> all = [] {
        std::vector<Kernels> list;
#if defined(SAD_X86)
        const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        list.push_back(avx512_bf16_kernels());
        list.back().supported = avx512 && __builtin_cpu_supports("avx512bf16");
        list.push_back(avx512_kernels());
        list.back().supported = avx512;
        list.push_back(avx2_kernels());
        list.back().supported =
            __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
        list.push_back(portable_kernels());
        list.back().supported = true;
        return list;
    }();
    return all;
}

// The kernels of the named instruction set, or the best supported for ""; null where there is none.
inline const Kernels* kernels_for(const std::string& isa) {
    for (const Kernels& k : all_kernels()) {
        if (k.supported && (isa.empty() || isa == k.isa)) return &k;
    }
    return nullptr;
}

}  // namespace sad::cpu
