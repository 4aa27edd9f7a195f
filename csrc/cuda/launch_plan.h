// Plans the launch of a kernel on the host: the strategy, the grid and the shared memory, from the properties of the GPU and
// the sizes of the rows. Thresholds are derived, not measured.
//
//   resident  A pair of rows stays in shared memory between the passes, so L2 delivers every byte once. With e bytes per
//             element, two passes over rows that are not resident move 5 V e bytes through L2 and 3 V e bytes from memory.
//             The L2 of an H100 is less than 5 / 3 as fast as its memory, so L2 would be the bottleneck. Two blocks share an
//             SM: one loads while the other computes. From sm_90 on, a cluster of 2, 4 or 8 blocks shares a row, so that two
//             blocks with their parts of a row fit an SM.
//   streamed  Every pass reads the rows again. Later passes hit L2 if (rows in flight) x (half the bytes of a pair) is below
//             0.7 of its size; half, because the blocks are at different stages. GPUs with GDDR memory have arithmetic to
//             spare, so they leave up to half of their SMs idle to stay below that.
//   sliced    The rows are fewer than half of the blocks that run at a time. Each row is split into slices, one block each.
#pragma once

#include <algorithm>
#include <cstdint>

#include "params.h"
#include "runtime.h"

namespace sad::cuda {

constexpr std::int64_t reduction_buffer_bytes = 2 * 33 * 32;  // sizeof(ReductionBuffer) in reductions.cuh
constexpr std::int64_t reserved_shared_bytes = 1024;          // the system reserves them on an SM for each block
constexpr std::int64_t short_row = 4096;  // columns; in a shorter row, 16 warps would have one or two groups per thread
constexpr std::int64_t min_sliced_columns = 16384;  // one block takes about 15 us; the launches of slicing take 3 us each
constexpr std::int64_t max_slices = 64;
constexpr double usable_l2_share = 0.7;

enum class Strategy { resident, streamed, sliced };

struct LaunchPlan {
    Strategy strategy;
    LaunchShape launch;
    std::int64_t slots;                  // 16-byte groups of a row per side that a block holds in shared memory (resident)
    std::int64_t slices, slice_columns;  // 1 and vocab unless sliced
};

struct RowShape {
    std::int64_t rows, vocab;
    int group_columns;     // columns in 16 bytes
    int pair_bytes;        // bytes of one column on both sides
    bool two_passes;       // the kernel reads the columns at least twice
    bool teacher_aligned;  // 16-byte groups start at the same columns on both sides
    bool two_blocks_fit;   // the kernel needs at most 64 registers: two blocks of 512 threads fit an SM
};

inline bool has_gddr(int arch) { return arch == 86 || arch == 89 || arch == 120; }

// Returns the threads of a block with about four groups per thread: at least one warp, at most `most`.
inline unsigned threads_for(std::int64_t groups, std::int64_t most) {
    const std::int64_t warps = std::max<std::int64_t>(1, (groups / 4 + 31) / 32);
    return static_cast<unsigned>(std::min(warps * 32, most));
}

inline LaunchPlan streamed_plan(const Gpu& gpu, const RowShape& shape) {
    const std::int64_t threads = std::min(gpu.max_block_threads, shape.vocab <= short_row ? 128 : 512);
    const std::int64_t blocks_per_sm = (shape.two_blocks_fit ? 1024 : 512) / std::min<std::int64_t>(threads, 512);
    std::int64_t blocks = gpu.sms * std::max<std::int64_t>(blocks_per_sm, 1);
    const auto rows_in_l2 =
        static_cast<std::int64_t>(usable_l2_share * gpu.l2_bytes / (shape.vocab * shape.pair_bytes / 2.0));
    if (shape.two_passes && rows_in_l2 < blocks) {
        const std::int64_t least = has_gddr(gpu.arch) ? gpu.sms / 2 : gpu.sms;
        blocks = std::max(rows_in_l2, std::max<std::int64_t>(least, 1));
    }
    blocks = std::min(blocks, std::max<std::int64_t>(shape.rows, 1));
    const LaunchShape launch{static_cast<unsigned>(blocks), static_cast<unsigned>(threads), reduction_buffer_bytes, 1};
    return {Strategy::streamed, launch, 0, 1, shape.vocab};
}

// Sets `plan` and returns true, or returns false if the rows do not fit the largest cluster.
inline bool resident_plan(const Gpu& gpu, const RowShape& shape, LaunchPlan& plan) {
    if (!shape.two_passes || !shape.teacher_aligned) return false;
    const std::int64_t groups = shape.vocab / shape.group_columns;
    const int largest_cluster = gpu.arch >= 90 ? 8 : 1;
    for (const int blocks_per_sm : {2, 1}) {
        if (blocks_per_sm == 2 && !shape.two_blocks_fit) continue;
        const std::int64_t room =
            std::min(gpu.block_shared_bytes, gpu.sm_shared_bytes / blocks_per_sm - reserved_shared_bytes);
        for (int cluster = 1; cluster <= largest_cluster; cluster *= 2) {
            const std::int64_t slots = (groups + cluster - 1) / cluster, bytes = reduction_buffer_bytes + 2 * 16 * slots;
            if (bytes > room) continue;
            const std::int64_t most_threads = shape.two_blocks_fit && blocks_per_sm == 1 ? 1024 : 512;
            const unsigned threads = threads_for(slots, std::min<std::int64_t>(most_threads, gpu.max_block_threads));
            const std::int64_t by_registers = (shape.two_blocks_fit ? 1024 : 512) / threads;
            const std::int64_t by_memory = gpu.sm_shared_bytes / (bytes + reserved_shared_bytes);
            const std::int64_t blocks = gpu.sms * std::max<std::int64_t>(1, std::min(by_registers, by_memory));
            const std::int64_t clusters =
                std::min(std::max<std::int64_t>(blocks / cluster, 1), std::max<std::int64_t>(shape.rows, 1));
            const LaunchShape launch{static_cast<unsigned>(clusters * cluster), threads, static_cast<std::size_t>(bytes),
                                     static_cast<unsigned>(cluster)};
            plan = {Strategy::resident, launch, slots, 1, shape.vocab};
            return true;
        }
    }
    return false;
}

// Returns whether the rows in flight of a streamed launch exceed L2. Then even one resident block per SM is faster.
inline bool exceeds_l2(const Gpu& gpu, const RowShape& shape, const LaunchPlan& streamed) {
    return streamed.launch.blocks * (shape.vocab * shape.pair_bytes / 2.0) > usable_l2_share * gpu.l2_bytes;
}

// Sets the number of slices and their columns. A slice is a multiple of what a block reads in one iteration.
inline void set_slices(LaunchPlan& plan, const RowShape& shape, std::int64_t blocks) {
    const std::int64_t step = plan.launch.threads * shape.group_columns;
    const std::int64_t count = std::min({blocks / std::max<std::int64_t>(shape.rows, 1), shape.vocab / step, max_slices});
    if (count < 2 || shape.vocab < min_sliced_columns) return;
    plan.slice_columns = (shape.vocab + count * step - 1) / (count * step) * step;
    plan.slices = (shape.vocab + plan.slice_columns - 1) / plan.slice_columns;
}

// Returns the number of blocks that the GPU runs at a time in a streamed launch.
inline std::int64_t blocks_at_a_time(const Gpu& gpu, RowShape shape) {
    shape.rows = INT64_MAX / 2;
    return streamed_plan(gpu, shape).launch.blocks;
}

// Returns the plan for kernels that read whole rows more than once.
inline LaunchPlan plan_rows(const Gpu& gpu, const RowShape& shape) {
    const LaunchPlan streamed = streamed_plan(gpu, shape);
    LaunchPlan sliced = streamed;
    set_slices(sliced, shape, blocks_at_a_time(gpu, shape));
    if (sliced.slices > 1) {
        sliced.strategy = Strategy::sliced;
        sliced.launch.blocks = static_cast<unsigned>(shape.rows * sliced.slices);
        return sliced;
    }
    LaunchPlan resident;
    if (!resident_plan(gpu, shape, resident)) return streamed;
    const bool one_block_per_sm = resident.slots * 32 > gpu.sm_shared_bytes / 2;
    return one_block_per_sm && gpu.arch < 90 && !exceeds_l2(gpu, shape, streamed) ? streamed : resident;
}

// Returns the plan for kernels that read every row once: slices if there are few rows, and a persistent grid.
inline LaunchPlan plan_one_pass(const Gpu& gpu, RowShape shape) {
    shape.two_passes = false;
    const std::int64_t blocks = blocks_at_a_time(gpu, shape);
    LaunchPlan plan = streamed_plan(gpu, shape);
    set_slices(plan, shape, blocks);
    plan.launch.blocks = static_cast<unsigned>(std::min(blocks, std::max<std::int64_t>(shape.rows * plan.slices, 1)));
    return plan;
}

}  // namespace sad::cuda
