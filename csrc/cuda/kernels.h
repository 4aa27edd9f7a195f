// The CUDA kernels, as the binding calls them. Every pointer is to device memory. The functions allocate nothing and never
// synchronize with the device. Results have the same bits on every run. Errors of the CUDA runtime are std::runtime_error.
#pragma once

#include <cstdint>

#include "params.h"
#include "plan_choice.h"
#include "runtime.h"

namespace sad::cuda {

// Returns the bytes of scratch memory that `span_kl` needs on this device. The memory must be 256-byte aligned.
std::int64_t span_kl_scratch_bytes(const SpanKlParams& params, int device, const PlanChoice& choice);

// Computes every output whose pointer is not null. The choice must be that of `span_kl_scratch_bytes`.
void span_kl(const SpanKlParams& params, void* scratch, int device, Stream stream, const PlanChoice& choice);

// Returns the bytes of scratch memory that `topk_span_kl` needs.
std::int64_t topk_span_kl_scratch_bytes(const TopkSpanKlParams& topk);

// Computes every output whose pointer is not null.
void topk_span_kl(const TopkSpanKlParams& topk, void* scratch, int device, Stream stream);

// Multiplies the rows of grad (rows, columns) with kinds != 0 by the number at `factor`.
void scale_rows(std::int64_t rows, std::int64_t columns, const Rows<void>& grad, const std::uint8_t* kinds,
                const float* factor, int device, Stream stream);

// Writes the label of every token, in one launch per batch.
void span_ids_from_offsets(const SpanIdsParams& params, int device, Stream stream);

}  // namespace sad::cuda
