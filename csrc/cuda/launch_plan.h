// Plans the launch of a kernel on the host: the strategy, the grid and the shared memory. A plan is computed from the
// properties of the GPU, the sizes of the rows, and the number of blocks of a kernel that run at the same time. Thresholds
// are derived, not measured. A `PlanChoice`, which `sad tune` measures, replaces a part of the plan.
//
//   resident  A pair of rows stays in shared memory between the passes, so L2 delivers every byte once. With e bytes per
//             element, two passes over rows that are not resident move 5 V e bytes through L2 and 3 V e bytes from memory.
//             The L2 of an H100 is less than 5 / 3 as fast as its memory, so L2 would be the bottleneck. Two blocks share an
//             SM: one loads while the other computes. From sm_90 on, a cluster of 2, 4 or 8 blocks shares a row, so that two
//             blocks with their parts of a row fit an SM.
//   streamed  Every pass reads the rows again. Later passes hit L2 if (rows in flight) x (half the bytes of a pair) is below
//             0.7 of its size; half, because the blocks are at different stages. GPUs with GDDR memory have arithmetic to
//             spare, so they leave up to half of their SMs idle to stay below that. If even the smallest grid needs more
//             than L2, later passes read memory anyway, and all SMs work.
//   sliced    The rows are fewer than half of the blocks that run at a time. Each row is split into slices, one block each.
//
// A grid never has more blocks than run at the same time. Each block processes the rows in turn, so a few blocks that start
// after the others would nearly double the time. In a grid with the same number of blocks on every SM, an SM processes at
// most ceil(rows / SMs) rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>

#include "params.h"
#include "plan_choice.h"
#include "runtime.h"

namespace sad::cuda {

constexpr std::int64_t reduction_buffer_bytes = 2 * 33 * 32;  // sizeof(ReductionBuffer) in reductions.cuh
constexpr std::int64_t reserved_shared_bytes = 1024;          // the system reserves them on an SM for each block
constexpr std::int64_t short_row = 4096;  // columns; in a shorter row, 16 warps would have one or two groups per thread
constexpr std::int64_t min_part = 2 * short_row;  // columns of a row per block of a cluster, unless larger parts do not fit
constexpr std::int64_t min_sliced_columns = 16384;  // one block takes about 15 us; the launches of slicing take 3 us each
constexpr std::int64_t max_slices = 64;
constexpr double usable_l2_share = 0.7;
constexpr double clear_gain = 0.9;  // more or larger clusters must save a tenth of the work, because they also wait more

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

// Returns how many blocks of a kernel run at the same time in launches of this shape, whatever its grid. 0 if the GPU cannot
// run the shape: no clusters, no clusters in the code, or no place for a cluster in a part of a GPU.
using BlocksAtOnce = std::function<std::int64_t(const LaunchShape&)>;

// The kernels of one call that differ by strategy.
struct RowKernels {
    BlocksAtOnce resident, streamed, sliced;
};

// Returns whether memory is slow relative to the SMs: all GPUs but A100 and A30, Hopper, and Blackwell for data centers.
inline bool has_gddr(int arch) { return arch != 80 && arch != 90 && arch / 10 != 10; }

// Returns whether L2 is at least 5 / 3 as fast as memory, so that passes that hit L2 are not slower than resident rows.
inline bool l2_keeps_up(int arch) { return arch < 90 || has_gddr(arch); }

inline double bytes_in_flight(const RowShape& shape) { return shape.vocab * shape.pair_bytes / 2.0; }  // per row

// Returns the blocks of a thread count for which an SM has registers.
inline std::int64_t blocks_by_registers(const RowShape& shape, std::int64_t threads) {
    return std::max<std::int64_t>(1, (shape.two_blocks_fit ? 1024 : 512) / threads);
}

// Returns the threads of a block with about four groups per thread: at least one warp, at most `most`.
inline unsigned threads_for(std::int64_t groups, std::int64_t most) {
    const std::int64_t warps = std::max<std::int64_t>(1, (groups / 4 + 31) / 32);
    return static_cast<unsigned>(std::min(warps * 32, most));
}

inline LaunchShape streamed_shape(const Gpu& gpu, const RowShape& shape, std::int64_t shared_bytes) {
    const std::int64_t threads = std::min(gpu.max_block_threads, shape.vocab <= short_row ? 128 : 512);
    return {1, static_cast<unsigned>(threads), static_cast<std::size_t>(shared_bytes), 1};
}

// Returns the grid of a streamed launch for any number of rows.
inline std::int64_t streamed_grid(const Gpu& gpu, const RowShape& shape, const LaunchShape& launch,
                                  const BlocksAtOnce& at_once) {
    const std::int64_t most = std::min(gpu.sms * blocks_by_registers(shape, launch.threads), at_once(launch));
    const auto rows_in_l2 = static_cast<std::int64_t>(usable_l2_share * gpu.l2_bytes / bytes_in_flight(shape));
    const std::int64_t least = std::max(has_gddr(gpu.arch) ? gpu.sms / 2 : gpu.sms, 1);
    const bool least_exceeds_l2 = least * bytes_in_flight(shape) > gpu.l2_bytes;
    if (!shape.two_passes || rows_in_l2 >= most || least_exceeds_l2) return std::max<std::int64_t>(most, 1);
    const std::int64_t whole_sms = rows_in_l2 < gpu.sms ? rows_in_l2 : rows_in_l2 / gpu.sms * gpu.sms;
    return std::max<std::int64_t>(std::min(std::max(whole_sms, least), most), 1);
}

inline LaunchPlan streamed_plan(const Gpu& gpu, const RowShape& shape, const BlocksAtOnce& at_once,
                                std::int64_t shared_bytes = reduction_buffer_bytes) {
    LaunchShape launch = streamed_shape(gpu, shape, shared_bytes);
    const std::int64_t blocks = streamed_grid(gpu, shape, launch, at_once);
    launch.blocks = static_cast<unsigned>(std::min(blocks, std::max<std::int64_t>(shape.rows, 1)));
    return {Strategy::streamed, launch, 0, 1, shape.vocab};
}

// Sets `plan` and returns true, or returns false if the rows do not fit the largest cluster. Two blocks per SM and small
// clusters come first. Another plan replaces them if the SM with the most rows has clearly less to do. `only` is the one
// cluster size to consider, 0 for all.
inline bool resident_plan(const Gpu& gpu, const RowShape& shape, const BlocksAtOnce& at_once, LaunchPlan& plan,
                          int only = 0) {
    if (!shape.two_passes || !shape.teacher_aligned) return false;
    const std::int64_t groups = shape.vocab / shape.group_columns, rows = std::max<std::int64_t>(shape.rows, 1);
    const int largest_cluster = gpu.arch >= 90 && !l2_keeps_up(gpu.arch) ? 8 : 1;
    bool found = false;
    double least_work = 0.0;
    for (const int blocks_per_sm : {2, 1}) {
        if (blocks_per_sm == 2 && !shape.two_blocks_fit) continue;
        const std::int64_t room =
            std::min(gpu.block_shared_bytes, gpu.sm_shared_bytes / blocks_per_sm - reserved_shared_bytes);
        for (int cluster = 1; cluster <= largest_cluster; cluster *= 2) {
            if (only != 0 && cluster != only) continue;
            const std::int64_t slots = (groups + cluster - 1) / cluster, bytes = reduction_buffer_bytes + 2 * 16 * slots;
            if (bytes > room || (found && slots * shape.group_columns < min_part)) continue;
            const std::int64_t most_threads = shape.two_blocks_fit && blocks_per_sm == 1 ? 1024 : 512;
            const unsigned threads = threads_for(slots, std::min<std::int64_t>(most_threads, gpu.max_block_threads));
            LaunchShape launch{1, threads, static_cast<std::size_t>(bytes), static_cast<unsigned>(cluster)};
            const std::int64_t blocks = std::min(gpu.sms * blocks_by_registers(shape, threads), at_once(launch));
            const std::int64_t clusters = blocks / cluster;
            if (clusters == 0) continue;
            // With n blocks on an SM, 1 / n of the clusters occupy every SM that clusters can occupy.
            const std::int64_t blocks_on_sm = (blocks + gpu.sms - 1) / gpu.sms;
            const double work = std::ceil(static_cast<double>(rows * blocks_on_sm) / clusters) * slots;
            if (found && work >= clear_gain * least_work) continue;
            found = true;
            least_work = work;
            launch.blocks = static_cast<unsigned>(std::min(clusters, rows) * cluster);
            plan = {Strategy::resident, launch, slots, 1, shape.vocab};
        }
    }
    return found;
}

// Returns whether the rows in flight of a streamed launch exceed L2. Then even one resident block per SM is faster.
inline bool exceeds_l2(const Gpu& gpu, const RowShape& shape, const LaunchPlan& streamed) {
    return streamed.launch.blocks * bytes_in_flight(shape) > usable_l2_share * gpu.l2_bytes;
}

// Sets the number of slices and their columns. A slice is a multiple of what a block reads in one iteration.
inline void set_slices(LaunchPlan& plan, const RowShape& shape, std::int64_t blocks, int waves = 1) {
    const std::int64_t step = plan.launch.threads * shape.group_columns, rows = std::max<std::int64_t>(shape.rows, 1);
    const std::int64_t count = std::min({waves * blocks / rows, shape.vocab / step, max_slices});
    if (blocks / rows < 2 || count < 2 || shape.vocab < min_sliced_columns) return;
    plan.slice_columns = (shape.vocab + count * step - 1) / (count * step) * step;
    plan.slices = (shape.vocab + plan.slice_columns - 1) / plan.slice_columns;
}

// Sets the plan for whole rows that was chosen and returns true, or returns false if there is none that fits.
inline bool chosen_plan(const Gpu& gpu, const RowShape& shape, const RowKernels& kernels, const PlanChoice& choice,
                        const LaunchPlan& streamed, LaunchPlan& plan) {
    if (!choice.strategy || !shape.two_passes) return false;
    if (choice.strategy == Strategy::resident) {
        return resident_plan(gpu, shape, kernels.resident, plan, choice.cluster);
    }
    const LaunchShape& launch = streamed.launch;
    const std::int64_t most = std::min(gpu.sms * blocks_by_registers(shape, launch.threads), kernels.streamed(launch));
    const auto blocks = std::max<std::int64_t>(static_cast<std::int64_t>(choice.share * static_cast<double>(most)), 1);
    plan = streamed;
    plan.launch.blocks = static_cast<unsigned>(std::min(blocks, std::max<std::int64_t>(shape.rows, 1)));
    return true;
}

// Returns the plan for kernels that read whole rows more than once.
inline LaunchPlan plan_rows(const Gpu& gpu, const RowShape& shape, const RowKernels& kernels,
                            const PlanChoice& choice = {}) {
    const LaunchPlan streamed = streamed_plan(gpu, shape, kernels.streamed);
    LaunchPlan sliced = streamed;
    set_slices(sliced, shape, kernels.sliced(streamed.launch), choice.waves);
    if (sliced.slices > 1) {
        sliced.strategy = Strategy::sliced;
        sliced.launch.blocks = static_cast<unsigned>(shape.rows * sliced.slices);
        return sliced;
    }
    LaunchPlan chosen;
    if (chosen_plan(gpu, shape, kernels, choice, streamed, chosen)) return chosen;
    LaunchPlan resident;
    if (!resident_plan(gpu, shape, kernels.resident, resident)) return streamed;
    const bool one_block_per_sm = resident.slots * 32 > gpu.sm_shared_bytes / 2;
    return one_block_per_sm && l2_keeps_up(gpu.arch) && !exceeds_l2(gpu, shape, streamed) ? streamed : resident;
}

// Returns the plan for kernels that read every row once: slices if there are few rows, and a persistent grid.
inline LaunchPlan plan_one_pass(const Gpu& gpu, RowShape shape, const BlocksAtOnce& at_once) {
    shape.two_passes = false;
    LaunchPlan plan = streamed_plan(gpu, shape, at_once);
    const std::int64_t blocks = streamed_grid(gpu, shape, plan.launch, at_once);
    set_slices(plan, shape, blocks);
    plan.launch.blocks = static_cast<unsigned>(std::min(blocks, std::max<std::int64_t>(shape.rows * plan.slices, 1)));
    return plan;
}

}  // namespace sad::cuda
