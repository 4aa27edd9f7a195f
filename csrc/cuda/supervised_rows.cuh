// Which rows are read: an index made on the device, so that no block wakes up for a row that is not and no host waits.
#pragma once

#include "row_work.cuh"

namespace sad::cuda {

constexpr int rows_of_a_thread = 8;

// Writes the index of Work, and zeros to the outputs of rows that are not read: `state_rows` numbers of state and
// `stats_rows` of either statistic. A row is read when its kind is not 0, and its weight where the weights decide. One
// block: the place of a row depends on all before it.
static __global__ void __launch_bounds__(512)
    collect_rows_kernel(const SpanKlParams a, std::int32_t* index, bool weights_decide, int state_rows, int stats_rows) {
    Exchange exchange;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), lane = thread % warp_width;
    const int rows = static_cast<int>(a.rows);
    int found = 0;  // before this round
    for (int first = 0; first < rows; first += threads * rows_of_a_thread) {
        const int begin = first + thread * rows_of_a_thread;
        unsigned read = 0;  // a bit for each of this thread's rows
        for (int i = 0; i < rows_of_a_thread; ++i) {
            const int row = begin + i;
            if (row < rows && a.kinds[row] != 0 && (!weights_decide || a.weights[row] != 0.0f)) read |= 1u << i;
        }
        int mine = 0;
        for (int i = 0; i < rows_of_a_thread; ++i) mine += read >> i & 1;
        int before = mine;  // in this warp, up to and with this lane
#pragma unroll
        for (int apart = 1; apart < warp_width; apart *= 2) {
            const int other = __shfl_up_sync(all_lanes, before, apart);
            if (lane >= apart) before += other;
        }
        before -= mine;
        const int in_this_round = exchange.sum_before(mine, before);
        int position = found + before;
        for (int i = 0; i < rows_of_a_thread && begin + i < rows; ++i) {
            const int row = begin + i;
            if (read >> i & 1) {
                index[position++] = row;
                continue;
            }
            index[rows - 1 - (row - position)] = row;
            if (a.value) a.value[row] = 0.0f;
            for (int k = 0; a.state && k < state_rows; ++k) a.state[k * a.rows + row] = 0.0f;
            for (int k = 0; a.entropies && k < stats_rows; ++k) a.entropies[k * a.rows + row] = 0.0f;
            for (int k = 0; a.argmax && k < stats_rows; ++k) a.argmax[k * a.rows + row] = 0;
        }
        found += in_this_round;
    }
    if (thread == 0) index[rows] = found;
}

}  // namespace sad::cuda
