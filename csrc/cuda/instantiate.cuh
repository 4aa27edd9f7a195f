// Instantiates the kernels of one student dtype.
#pragma once

#include "dispatch.h"
#include "slice_kernels.cuh"
#include "topk_rows.cuh"

namespace sad::cuda {

template <typename S>
KernelTable instantiate() {
    return {{&resident_rows_kernel<S, Case::forward, false>, &resident_rows_kernel<S, Case::forward, true>,
             &resident_rows_kernel<S, Case::reverse, true>, &resident_rows_kernel<S, Case::jsd, true>,
             &resident_rows_kernel<S, Case::general, true>},
            {&streamed_rows_kernel<S, Case::forward, false>, &streamed_rows_kernel<S, Case::forward, true>,
             &streamed_rows_kernel<S, Case::reverse, true>, &streamed_rows_kernel<S, Case::jsd, true>,
             &streamed_rows_kernel<S, Case::general, true>},
            {&slice_totals_kernel<S, false>, &slice_totals_kernel<S, true>},
            {&slice_values_kernel<S, false>, &slice_values_kernel<S, true>},
            {&gradient_kernel<S, Case::forward>, &gradient_kernel<S, Case::forward>, &gradient_kernel<S, Case::reverse>,
             &gradient_kernel<S, Case::jsd>, &gradient_kernel<S, Case::general>},
            {&topk_rows_kernel<S, false, true>, &topk_rows_kernel<S, true, false>},
            &scale_rows_kernel<S>};
}

}  // namespace sad::cuda
