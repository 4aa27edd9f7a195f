#include "kernels.h"

namespace sad::cuda {
namespace {

constexpr unsigned threads_per_block = 128;  // small blocks spread 64 x 512 tokens over all SMs

constexpr std::uint8_t reason = 1, act = 2;

// Returns the first span in [low, high) that ends after `begin`. Disjoint spans sorted by start are also sorted by end.
__device__ std::int64_t first_ending_after(std::int64_t begin, const std::int64_t* ends, std::int64_t low,
                                           std::int64_t high) {
    while (low < high) {
        const std::int64_t middle = low + (high - low) / 2;
        if (ends[middle] > begin) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

// One thread per token. Neighbouring threads share a row, so the spans come from L1.
__global__ void __launch_bounds__(threads_per_block) span_ids_kernel(const SpanIdsParams params, std::int64_t count) {
    const std::int64_t token = std::int64_t{blockIdx.x} * threads_per_block + threadIdx.x;
    if (token >= count) return;
    const std::int64_t begin = params.offsets[2 * token], end = params.offsets[2 * token + 1];
    std::uint8_t id = 0;
    if (end > begin) {
        const std::int64_t row = token / params.tokens;
        const std::int64_t last = params.row_splits[row + 1];
        std::int64_t most = 0;
        for (std::int64_t s = first_ending_after(begin, params.ends, params.row_splits[row], last); s < last; ++s) {
            const std::int64_t start = params.starts[s], stop = params.ends[s];
            if (start >= end) break;
            const std::int64_t covered = (stop < end ? stop : end) - (start > begin ? start : begin);
            if (covered > most) {  // strict, so that a tie goes to the earlier span
                most = covered;
                id = params.kinds[s];
            }
        }
    }
    if (params.ids) params.ids[token] = id;
    if (params.m_r) params.m_r[token] = id == reason;
    if (params.m_a) params.m_a[token] = id == act;
}

}  // namespace

void span_ids_from_offsets(const SpanIdsParams& params, int device, Stream stream) {
    const std::int64_t count = params.batch * params.tokens;
    if (count == 0) return;  // a launch of no blocks is an error
    const DeviceGuard guard(device);
    const auto blocks = static_cast<unsigned>((count + threads_per_block - 1) / threads_per_block);
    launch(span_ids_kernel, LaunchShape{blocks, threads_per_block, 0, 1}, stream, params, count);
}

}  // namespace sad::cuda
