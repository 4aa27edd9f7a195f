// Instantiates the kernels of one student dtype.
#pragma once

#include "dispatch.h"
#include "slice_kernels.cuh"
#include "topk_rows.cuh"

namespace sad::cuda {

template <typename S>
KernelTable instantiate() {
    return {
        {&resident_rows_kernel<S, true, false>, &resident_rows_kernel<S, true, true>, &resident_rows_kernel<S, false, true>},
        {&streamed_rows_kernel<S, true, false>, &streamed_rows_kernel<S, true, true>, &streamed_rows_kernel<S, false, true>},
        {&slice_totals_kernel<S, false>, &slice_totals_kernel<S, true>},
        {&slice_values_kernel<S, false>, &slice_values_kernel<S, true>},
        {&gradient_kernel<S, false>, &gradient_kernel<S, true>},
        {&topk_rows_kernel<S, false, true>, &topk_rows_kernel<S, true, false>},
        &scale_rows_kernel<S>};
}

}  // namespace sad::cuda
