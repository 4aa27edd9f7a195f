// The span divergences on the CPU: what the binding calls.
#pragma once

#include <cstdint>

#include "span_kl_params.h"

namespace sad::cpu {

struct Kernels;  // of one instruction set, see dispatch.h

// Everything that `a` has room for, on up to `threads` threads; the same bits for any number of them.
void span_kl(const SpanKlParams& a, const Kernels& kernels, int threads);

// Multiplies the rows of grad (rows, columns) with kinds != 0 by factor.
void scale_rows(std::int64_t rows, std::int64_t columns, const Rows<void>& grad, const std::uint8_t* kinds, float factor,
                const Kernels& kernels, int threads);

}  // namespace sad::cpu
