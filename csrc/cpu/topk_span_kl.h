// The losses against listed columns and labels on the CPU: what the binding calls.
#pragma once

#include "topk_span_kl_params.h"

namespace sad::cpu {

struct Kernels;  // of one instruction set, see dispatch.h

// Everything that `a` has room for, on up to `threads` threads; the same bits for any number of them.
void topk_span_kl(const TopkSpanKlParams& a, const Kernels& kernels, int threads);

}  // namespace sad::cpu
