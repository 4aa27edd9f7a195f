// The kernels for whole rows, on persistent grids: each block (or cluster) processes one row after the other.
// launch_plan.h defines streamed and resident rows, and chooses between them.
#pragma once

#include "row_task.cuh"

namespace sad::cuda {

// Reads the groups of a streamed row. The methods are the passes over a row: the second pass is the last of two, or it is
// followed by a third.
template <typename S>
struct StreamedGroups {
    const RowPair<S>& pair;

    template <typename F>
    __device__ __forceinline__ void first(const F& f) const {
        for_each_group<false, false>(pair, f);
    }
    template <typename F>
    __device__ __forceinline__ void second_of_three(const F& f) const {
        for_each_group<true, false>(pair, f);
    }
    template <typename F>
    __device__ __forceinline__ void second_of_two(const F& f) const {
        for_each_group<true, true>(pair, f);
    }
    template <typename F>
    __device__ __forceinline__ void third(const F& f) const {
        for_each_group<false, true>(pair, f);
    }
};

template <typename S, bool Lean, bool Stats>
__global__ void __launch_bounds__(512, Lean && !Stats ? 2 : 1)
    streamed_rows_kernel(const __grid_constant__ LaunchArgs args) {
    Reducer reducer;
    const int read = Lean ? args.index.read[0] : args.index.positions();
    for (int position = static_cast<int>(blockIdx.x); position < read; position += static_cast<int>(gridDim.x)) {
        const std::int64_t row = Lean ? args.index.entries[position] : args.index.row_at(position);
        if (!Lean && row < 0) continue;
        const RowPair<S> pair = pair_of<S, Lean>(args, row, 0, static_cast<int>(args.params.vocab));
        StreamedGroups<S> groups{pair};
        process_row<S, Lean, Stats>(args, position, row, pair, groups, reducer);
    }
    if (Lean || !args.index.deferred_only) zero_unread_rows<S>(args, read);
}

constexpr int quarters = 4;

// Reads the groups of a resident row, with the same methods as `StreamedGroups`.
//
// Every thread copies the groups that it reads itself, so the copies need no barrier. During the last pass over a row, each
// group of the next row replaces the group that the thread has just processed. The copies are committed in quarters, so that
// the first pass over the next row starts when its first quarter has arrived.
template <typename S>
struct ResidentGroups {
    Bytes16* student;
    Bytes16* teacher;
    int slots;         // groups per side that this block holds
    int begin, count;  // the groups of the row in this block: [begin, begin + count)
    RowPair<S> next;
    int next_begin, next_count;

    __device__ __forceinline__ static int groups_per_block(const GroupLayout& layout) {
        return (layout.groups + static_cast<int>(cluster_blocks()) - 1) / static_cast<int>(cluster_blocks());
    }
    // Sets the row whose groups replace those of the current row.
    __device__ __forceinline__ void set_next_row(const RowPair<S>& row) {
        next = row;
        const int per_block = groups_per_block(row.layout), rank = static_cast<int>(cluster_rank());
        if (per_block > slots) __trap();  // launched in larger clusters than this code has
        next_begin = min(rank * per_block, row.layout.groups);
        next_count = min(per_block, row.layout.groups - next_begin);
    }
    __device__ __forceinline__ void set_no_next_row() { next_count = 0; }
    __device__ __forceinline__ void advance() {
        begin = next_begin;
        count = next_count;
    }

    template <bool WaitForCopies, bool Refill, typename F>
    __device__ __forceinline__ void for_each_slot(const F& f) {
        const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
        const int iterations = (slots + threads - 1) / threads;
#pragma unroll 1
        for (int quarter = 0; quarter < quarters; ++quarter) {
            if (WaitForCopies) {
                switch (quarter) {
                    case 0:
                        wait_for_copies<3>();
                        break;
                    case 1:
                        wait_for_copies<2>();
                        break;
                    case 2:
                        wait_for_copies<1>();
                        break;
                    default:
                        wait_for_copies<0>();
                }
            }
            const int end = min((quarter + 1) * iterations / quarters * threads, slots);
#pragma unroll 1
            for (int slot = quarter * iterations / quarters * threads + thread; slot < end; slot += threads) {
                if (slot < count) f(begin + slot, PairBytes{student[slot], teacher[slot]});
                if (Refill && slot < next_count) {
                    const int column = next.layout.template column_of_group<S>(next_begin + slot);
                    copy_async(student + slot, next.student + column);
                    copy_async(teacher + slot, static_cast<const S*>(next.teacher.first) + column);
                }
            }
            if (Refill) commit_copies();
        }
    }

    template <typename F>
    __device__ __forceinline__ void first(const F& f) {
        for_each_slot<true, false>(f);
    }
    template <typename F>
    __device__ __forceinline__ void second_of_three(const F& f) {
        for_each_slot<false, false>(f);
    }
    template <typename F>
    __device__ __forceinline__ void second_of_two(const F& f) {
        for_each_slot<false, true>(f);
    }
    template <typename F>
    __device__ __forceinline__ void third(const F& f) {
        for_each_slot<false, true>(f);
    }
};

template <typename S, bool Lean, bool Stats>
__global__ void __launch_bounds__(Lean && !Stats ? 1024 : 512, 1)
    resident_rows_kernel(const __grid_constant__ LaunchArgs args) {
    Reducer reducer;
    Bytes16* const shared = reinterpret_cast<Bytes16*>(dynamic_shared() + sizeof(ReductionBuffer));
    ResidentGroups<S> groups{};
    groups.student = shared;
    groups.teacher = shared + args.slots;
    groups.slots = args.slots;
    const int read = args.index.read[0], vocab = static_cast<int>(args.params.vocab);
    const int clusters = static_cast<int>(gridDim.x / cluster_blocks());
    int position = static_cast<int>(blockIdx.x / cluster_blocks());
    if (position < read) {
        groups.set_next_row(pair_of<S, Lean>(args, args.index.entries[position], 0, vocab));
        groups.template for_each_slot<false, true>([](int, const PairBytes&) {});  // only fills the slots
    }
    for (; position < read; position += clusters) {
        const std::int64_t row = args.index.entries[position];
        const RowPair<S> pair = groups.next;
        groups.advance();
        if (position + clusters < read) {
            groups.set_next_row(pair_of<S, Lean>(args, args.index.entries[position + clusters], 0, vocab));
        } else {
            groups.set_no_next_row();
        }
        process_row<S, Lean, Stats>(args, position, row, pair, groups, reducer);
    }
    zero_unread_rows<S>(args, read);
    cluster_sync();  // keeps shared memory alive until the other blocks have read it
}

}  // namespace sad::cuda
