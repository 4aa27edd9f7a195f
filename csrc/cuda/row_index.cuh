// The rows that a launch processes.
#pragma once

#include "device.cuh"

namespace sad::cuda {

// Written by `collect_rows_kernel`. Some rows need exact sums (row_task.cuh), for which the kernels of the common case
// (`Case`) have too few registers. They defer such a row: they set its entry to ~row and write no gradient, which may
// overwrite the logits. A second launch, of a general kernel, then computes all outputs of the deferred rows. It returns at
// once if there are none, as usual.
struct RowIndex {
    std::int32_t* entries;  // (rows) rows that are read, then unread rows in reverse
    std::int32_t* read;     // how many rows are read; the next number is 1 if any of them is deferred, else 0
    bool deferred_only;     // whether this is the second launch

    // Returns the number of positions that this launch looks at.
    __device__ __forceinline__ int positions() const { return deferred_only && read[1] == 0 ? 0 : read[0]; }
    // Returns the row at a position, or a negative number if this launch leaves it out.
    __device__ __forceinline__ int row_at(int position) const {
        return deferred_only ? ~entries[position] : entries[position];
    }
    // Defers a row. One thread calls it, after all threads have read the entry.
    __device__ __forceinline__ void defer(int position, std::int64_t row) const {
        entries[position] = ~static_cast<std::int32_t>(row);
        read[1] = 1;  // every block writes the same number
    }
};

}  // namespace sad::cuda
