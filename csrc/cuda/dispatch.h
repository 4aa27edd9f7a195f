// The kernels of one student dtype; every dtype has a source of its own, so that they compile at the same time.
#pragma once

#include <cstdint>

#include "span_kl_params.h"

namespace sad::cuda {

struct Work;        // row_work.cuh
struct TopkWork;  // topk_outcomes.cuh

enum Variant { lean, lean_stats, general, variants };  // see row_work.cuh; the last one can do anything

struct Kernels {
    using OfRows = void (*)(Work);
    OfRows resident[variants], streamed[variants];
    OfRows slice_totals[2], slice_values[2];  // without and with statistics
    OfRows gradient[2];                       // general, lean
    void (*listed[2])(TopkWork);            // general, lean
    void (*scale)(Rows<void> grad, const std::uint8_t* kinds, const float* factor, int rows, int columns, int slices,
                  int slice_columns);
};

Kernels float32_kernels();
Kernels bfloat16_kernels();
Kernels float16_kernels();

}  // namespace sad::cuda
