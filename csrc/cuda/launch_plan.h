// Which kernel walks the rows, on how many blocks, and with how much shared memory: from the card's figures and the sizes
// alone, on the host. The reasons are derived, none of them has been timed yet.
//
//   resident  A pair of rows stays in shared memory between the passes, so that L2 delivers every byte once. Rows that two
//             passes read move 5 V e through L2 (e bytes an element) against 3 V e from memory; an H100's L2 has less than
//             5 / 3 of its memory's speed, so there L2 would be the limit. Two blocks on an SM, one of which loads while the
//             other computes; from sm_90 on a cluster of 2, 4 or 8 blocks shares a row until two slices fit an SM.
//   streamed  Every pass reads the rows again. The later passes find them in L2 if (rows in flight) x (half a pair) is below
//             0.7 of it: half, because blocks are at different stages. Cards with GDDR memory have arithmetic to spare, so
//             they leave up to half of their SMs idle for that.
//   sliced    Fewer rows than half of the blocks that the card runs at a time: each is cut into slices, one block each.
#pragma once

#include <algorithm>
#include <cstdint>

#include "runtime.h"
#include "span_kl_params.h"

namespace sad::cuda {

constexpr std::int64_t board_bytes = 2 * 33 * 32;     // of Board in reductions.cuh
constexpr std::int64_t reserved_shared_bytes = 1024;  // that the system takes of an SM for each block
constexpr std::int64_t short_row = 4096;              // columns; up to here 16 warps would have a group or two each
constexpr std::int64_t worth_slicing = 16384;  // columns; one block takes some 15 us, the launches of slicing 3 us each
constexpr std::int64_t most_slices = 64;
constexpr double share_of_l2 = 0.7;

enum class Way { resident, streamed, sliced };

struct Plan {
    Way way;
    Launch rows;  // of the kernel that walks whole rows; of one slice each where the way is `sliced`
    std::int64_t slots;
    std::int64_t slices, slice_columns;
};

struct RowWork {
    std::int64_t rows, vocab;
    int group_columns, pair_bytes;  // of 16 bytes; of one column on both sides
    bool two_passes;                // the same columns are read at least twice
    bool teacher_wide;
    bool narrow_kernel;  // 64 registers do: two blocks of 512 threads on an SM
};

inline bool has_gddr(int arch) { return arch == 86 || arch == 89 || arch == 120; }

// Blocks of a warp at least, enough for four groups a thread.
inline unsigned threads_for(std::int64_t groups, std::int64_t most) {
    const std::int64_t warps = std::max<std::int64_t>(1, (groups / 4 + 31) / 32);
    return static_cast<unsigned>(std::min(warps * 32, most));
}

inline Plan streamed_plan(const Card& card, const RowWork& work) {
    const std::int64_t threads = std::min(card.block_threads, work.vocab <= short_row ? 128 : 512);
    const std::int64_t in_an_sm = (work.narrow_kernel ? 1024 : 512) / std::min<std::int64_t>(threads, 512);
    std::int64_t blocks = card.processors * std::max<std::int64_t>(in_an_sm, 1);
    const auto fit = static_cast<std::int64_t>(share_of_l2 * card.l2_bytes / (work.vocab * work.pair_bytes / 2.0));
    if (work.two_passes && fit < blocks) {
        const std::int64_t least = has_gddr(card.arch) ? card.processors / 2 : card.processors;
        blocks = std::max(fit, std::max<std::int64_t>(least, 1));
    }
    blocks = std::min(blocks, std::max<std::int64_t>(work.rows, 1));
    const Launch launch{static_cast<unsigned>(blocks), static_cast<unsigned>(threads), board_bytes, 1};
    return {Way::streamed, launch, 0, 1, work.vocab};
}

// False where no cluster is large enough.
inline bool resident_plan(const Card& card, const RowWork& work, Plan& plan) {
    if (!work.two_passes || !work.teacher_wide) return false;
    const std::int64_t groups = work.vocab / work.group_columns;
    const int largest_cluster = card.arch >= 90 ? 8 : 1;
    for (const int in_an_sm : {2, 1}) {
        if (in_an_sm == 2 && !work.narrow_kernel) continue;
        const std::int64_t room =
            std::min(card.block_shared_bytes, card.processor_shared_bytes / in_an_sm - reserved_shared_bytes);
        for (int cluster = 1; cluster <= largest_cluster; cluster *= 2) {
            const std::int64_t slots = (groups + cluster - 1) / cluster, bytes = board_bytes + 2 * 16 * slots;
            if (bytes > room) continue;
            const std::int64_t most_threads = work.narrow_kernel && in_an_sm == 1 ? 1024 : 512;
            const unsigned threads = threads_for(slots, std::min<std::int64_t>(most_threads, card.block_threads));
            const std::int64_t by_registers = (work.narrow_kernel ? 1024 : 512) / threads;
            const std::int64_t by_memory = card.processor_shared_bytes / (bytes + reserved_shared_bytes);
            const std::int64_t blocks = card.processors * std::max<std::int64_t>(1, std::min(by_registers, by_memory));
            const std::int64_t clusters =
                std::min(std::max<std::int64_t>(blocks / cluster, 1), std::max<std::int64_t>(work.rows, 1));
            const Launch launch{static_cast<unsigned>(clusters * cluster), threads, static_cast<std::size_t>(bytes),
                                static_cast<unsigned>(cluster)};
            plan = {Way::resident, launch, slots, 1, work.vocab};
            return true;
        }
    }
    return false;
}

// Whether the passes of streamed rows would find L2 overrun, so that even a single resident block on an SM is better.
inline bool overruns_l2(const Card& card, const RowWork& work, const Plan& streamed) {
    return streamed.rows.blocks * (work.vocab * work.pair_bytes / 2.0) > share_of_l2 * card.l2_bytes;
}

// Into how many slices, and of how many columns each: whole rounds of a block.
inline void slice(Plan& plan, const RowWork& work, std::int64_t blocks) {
    const std::int64_t round = plan.rows.threads * work.group_columns;
    const std::int64_t count = std::min({blocks / std::max<std::int64_t>(work.rows, 1), work.vocab / round, most_slices});
    if (count < 2 || work.vocab < worth_slicing) return;
    plan.slice_columns = (work.vocab + count * round - 1) / (count * round) * round;
    plan.slices = (work.vocab + plan.slice_columns - 1) / plan.slice_columns;
}

inline Plan plan_rows(const Card& card, const RowWork& work) {
    RowWork everywhere = work;
    everywhere.rows = INT64_MAX / 2;
    const std::int64_t blocks = streamed_plan(card, everywhere).rows.blocks;
    Plan sliced = streamed_plan(card, work);
    slice(sliced, work, blocks);
    if (sliced.slices > 1) {
        sliced.way = Way::sliced;
        sliced.rows.blocks = static_cast<unsigned>(work.rows * sliced.slices);
        return sliced;
    }
    Plan resident;
    if (!resident_plan(card, work, resident)) return streamed_plan(card, work);
    const Plan streamed = streamed_plan(card, work);
    const bool crowded = resident.slots * 32 > card.processor_shared_bytes / 2;  // one block on an SM
    return crowded && card.arch < 90 && !overruns_l2(card, work, streamed) ? streamed : resident;
}

// For the kernels that read every row once: slices where rows are few, and a grid that stays.
inline Plan plan_one_pass(const Card& card, RowWork work) {
    work.two_passes = false;
    RowWork everywhere = work;
    everywhere.rows = INT64_MAX / 2;
    const std::int64_t blocks = streamed_plan(card, everywhere).rows.blocks;
    Plan plan = streamed_plan(card, work);
    slice(plan, work, blocks);
    plan.rows.blocks = static_cast<unsigned>(std::min(blocks, std::max<std::int64_t>(work.rows * plan.slices, 1)));
    return plan;
}

}  // namespace sad::cuda
