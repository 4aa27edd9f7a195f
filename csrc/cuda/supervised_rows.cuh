// Makes the index of supervised rows on the device, so that no block starts for an unread row and the host never waits.
#pragma once

#include "row_task.cuh"

namespace sad::cuda {

constexpr int rows_per_thread = 8;

// Writes the index, and zeros to the outputs of unread rows: `state_rows` numbers of state, `stats_rows` of
// each statistic. A row is read if its kind is not 0 and, with `check_weights`, its weight is not 0. The kernel runs in one
// block, because the position of a row depends on all rows before it.
static __global__ void __launch_bounds__(512)
    collect_rows_kernel(const SpanKlParams params, RowIndex index, bool check_weights, int state_rows, int stats_rows) {
    Reducer reducer;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), lane = thread % warp_width;
    const int rows = static_cast<int>(params.rows);
    int found = 0;  // rows read before this iteration
    for (int first = 0; first < rows; first += threads * rows_per_thread) {
        const int begin = first + thread * rows_per_thread;
        unsigned read = 0;  // one bit per row of this thread
        for (int i = 0; i < rows_per_thread; ++i) {
            const int row = begin + i;
            if (row < rows && params.kinds[row] != 0 && (!check_weights || params.weights[row] != 0.0f)) read |= 1u << i;
        }
        int mine = 0;
        for (int i = 0; i < rows_per_thread; ++i) mine += read >> i & 1;
        int before = mine;  // inclusive sum over the lower lanes of the warp
#pragma unroll
        for (int apart = 1; apart < warp_width; apart *= 2) {
            const int other = __shfl_up_sync(all_lanes, before, apart);
            if (lane >= apart) before += other;
        }
        before -= mine;
        const int in_this_iteration = reducer.exclusive_sum(mine, before);
        int position = found + before;
        for (int i = 0; i < rows_per_thread && begin + i < rows; ++i) {
            const int row = begin + i;
            if (read >> i & 1) {
                index.entries[position++] = row;
                continue;
            }
            index.entries[rows - 1 - (row - position)] = row;
            if (params.value) params.value[row] = 0.0f;
            for (int k = 0; params.state && k < state_rows; ++k) params.state[k * params.rows + row] = 0.0f;
            for (int k = 0; params.entropies && k < stats_rows; ++k) params.entropies[k * params.rows + row] = 0.0f;
            for (int k = 0; params.argmax && k < stats_rows; ++k) params.argmax[k * params.rows + row] = 0;
        }
        found += in_this_iteration;
    }
    if (thread == 0) index.read[0] = found, index.read[1] = 0;
}

}  // namespace sad::cuda
