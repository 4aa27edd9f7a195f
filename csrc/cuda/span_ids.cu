#include "span_ids.h"

namespace sad::cuda {
namespace {

// Few registers and no shared memory: any size fills an SM. Small blocks spread 64 x 512 tokens over all SMs of a card.
constexpr unsigned kThreads = 128;

constexpr std::uint8_t kReason = 1, kAct = 2;

struct Batch {
    const std::int64_t* offsets;
    std::int64_t count;   // tokens of all rows
    std::int64_t tokens;  // of a row
    const std::int64_t* starts;
    const std::int64_t* ends;
    const std::uint8_t* kinds;
    const std::int64_t* row_splits;
    std::uint8_t* ids;
    std::uint8_t* m_r;
    std::uint8_t* m_a;
};

// The first of the spans [low, high) that ends after `begin`; disjoint spans sorted by start are sorted by end too.
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

// One thread per token: neighbours share their row, so its spans come from L1.
__global__ void __launch_bounds__(kThreads) span_ids_kernel(const Batch b) {
    const std::int64_t token = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (token >= b.count) return;
    const std::int64_t begin = b.offsets[2 * token], end = b.offsets[2 * token + 1];
    std::uint8_t id = 0;
    if (end > begin) {
        const std::int64_t row = token / b.tokens;
        const std::int64_t last = b.row_splits[row + 1];
        std::int64_t most = 0;
        for (std::int64_t s = first_ending_after(begin, b.ends, b.row_splits[row], last); s < last; ++s) {
            const std::int64_t start = b.starts[s], stop = b.ends[s];
            if (start >= end) break;
            const std::int64_t covered = (stop < end ? stop : end) - (start > begin ? start : begin);
            if (covered > most) {  // strictly, so that a tie stays with the earlier span
                most = covered;
                id = b.kinds[s];
            }
        }
    }
    if (b.ids) b.ids[token] = id;
    if (b.m_r) b.m_r[token] = id == kReason;
    if (b.m_a) b.m_a[token] = id == kAct;
}

}  // namespace

void span_ids_from_offsets(const std::int64_t* offsets, std::int64_t batch, std::int64_t tokens, const std::int64_t* starts,
                           const std::int64_t* ends, const std::uint8_t* kinds, const std::int64_t* row_splits,
                           std::uint8_t* ids, std::uint8_t* m_r, std::uint8_t* m_a, int device, Stream stream) {
    const std::int64_t count = batch * tokens;
    if (count == 0) return;  // a launch of no blocks is an error
    const DeviceGuard guard(device);
    const Batch b{offsets, count, tokens, starts, ends, kinds, row_splits, ids, m_r, m_a};
    const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
    launch(span_ids_kernel, Launch{blocks, kThreads, 0, 1}, stream, b);
}

}  // namespace sad::cuda
