// Chooses the instruction set at run time.
#pragma once

#include <string>
#include <vector>

#include "span_kl.h"

namespace sad::cpu {

struct Kernels {
    const char* isa;
    bool supported;
    SpanKlRows span_kl;
    ScaleRows scale;
};

// Best first; "portable" is always there and always supported.
inline const std::vector<Kernels>& kernels() {
#if defined(SAD_X86)
    static const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    static const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
    static const std::vector<Kernels> all = {
#if defined(SAD_X86)
        {"avx512", avx512, span_kl_rows_avx512, scale_rows_avx512},
        {"avx2", avx2, span_kl_rows_avx2, scale_rows_avx2},
#endif
        {"portable", true, span_kl_rows_portable, scale_rows_portable},
    };
    return all;
}

// The kernels of the named instruction set, or the best supported for ""; null where there is none.
inline const Kernels* kernels_for(const std::string& isa) {
    for (const Kernels& k : kernels()) {
        if (k.supported && (isa.empty() || isa == k.isa)) return &k;
    }
    return nullptr;
}

}  // namespace sad::cpu
