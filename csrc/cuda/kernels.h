// The span divergences on an NVIDIA GPU: what the binding calls. Every pointer is to device memory; nothing is allocated and
// nothing waits for the device. Errors of the runtime are thrown as std::runtime_error.
#pragma once

#include <cstdint>

#include "runtime.h"
#include "span_kl_params.h"

namespace sad::cuda {

// Bytes of scratch memory that span_kl needs for `a` on this device; any 256-byte aligned memory will do.
std::int64_t span_kl_scratch_bytes(const SpanKlParams& a, int device);

// Everything that `a` has room for; the same bits on every run.
void span_kl(const SpanKlParams& a, void* scratch, int device, Stream stream);

// Multiplies the rows of grad (rows, columns) with kinds != 0 by the number at `factor`.
void scale_rows(std::int64_t rows, std::int64_t columns, const Rows<void>& grad, const std::uint8_t* kinds,
                const float* factor, int device, Stream stream);

}  // namespace sad::cuda
