// The losses against listed columns and labels on an NVIDIA GPU: what the binding calls, as in span_kl.h.
#pragma once

#include <cstdint>

#include "runtime.h"
#include "topk_span_kl_params.h"

namespace sad::cuda {

// Bytes of scratch memory that topk_span_kl needs for so many rows.
std::int64_t topk_span_kl_scratch_bytes(std::int64_t rows);

// Everything that `p` has room for; the same bits on every run.
void topk_span_kl(const TopkSpanKlParams& p, void* scratch, int device, Stream stream);

}  // namespace sad::cuda
