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

template <typename S, Case C, bool Stats>
__global__ void __launch_bounds__(512, is_lean(C) ? 2 : 1) streamed_rows_kernel(const __grid_constant__ LaunchArgs args) {
    Reducer reducer;
    int position = static_cast<int>(blockIdx.x);
    // The number of rows is read again for every row, so that it takes no register.
    for (; position < (is_common(C) ? args.index.read[0] : args.index.positions());
         position += static_cast<int>(gridDim.x)) {
        const int row = is_common(C) ? args.index.entries[position] : args.index.row_at(position);
        if (!is_common(C) && row < 0) continue;
        const RowPair<S> pair = pair_of<S, C>(args, row, 0, static_cast<int>(args.params.vocab));
        StreamedGroups<S> groups{pair};
        process_row<S, C, Stats>(args, position, row, pair, groups, reducer);
    }
    if (is_common(C) || !args.index.deferred_only) zero_unread_rows<S>(args, args.index.read[0]);
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
    const S *next_student, *next_teacher;  // the groups of the next row in this block
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
        const int column = row.layout.template column_of_group<S>(next_begin);
        next_student = row.student + column;
        next_teacher = static_cast<const S*>(row.teacher.first) + column;
    }
    __device__ __forceinline__ void set_no_next_row() { next_count = 0; }
    __device__ __forceinline__ void advance() {
        begin = next_begin;
        count = next_count;
    }

    template <bool WaitForCopies, bool Refill, typename F>
    __device__ __forceinline__ void for_each_slot(const F& f) {
        constexpr unsigned size = sizeof(Bytes16);
        const unsigned step = blockDim.x * size, iterations = (static_cast<unsigned>(slots) + blockDim.x - 1) / blockDim.x;
        // `at` counts from the first group of the row, and so do these addresses.
        const unsigned first = static_cast<unsigned>(begin) * size;
        const unsigned end = first + static_cast<unsigned>(count) * size;
        const unsigned next_end = first + static_cast<unsigned>(next_count) * size;
        char* const student_slots = reinterpret_cast<char*>(student) - first;
        char* const teacher_slots = reinterpret_cast<char*>(teacher) - first;
        const char* const next_student_groups = reinterpret_cast<const char*>(next_student) - first;
        const char* const next_teacher_groups = reinterpret_cast<const char*>(next_teacher) - first;
        const auto refill = [&](unsigned at, bool wanted) {
            copy_async(reinterpret_cast<Bytes16*>(student_slots + at), next_student_groups + at, wanted);
            copy_async(reinterpret_cast<Bytes16*>(teacher_slots + at), next_teacher_groups + at, wanted);
        };
        unsigned at = first + threadIdx.x * size;
#pragma unroll 1
        for (unsigned quarter = 1; quarter <= quarters; ++quarter) {
            if (WaitForCopies) {
                switch (quarter) {
                    case 1:
                        wait_for_copies<3>();
                        break;
                    case 2:
                        wait_for_copies<2>();
                        break;
                    case 3:
                        wait_for_copies<1>();
                        break;
                    default:
                        wait_for_copies<0>();
                }
            }
            const unsigned quarter_end = first + quarter * iterations / quarters * step;
            const unsigned stop = min(quarter_end, end);
#pragma unroll 1
            for (; at < stop; at += step) {
                f(at,
                  PairBytes{*reinterpret_cast<const Bytes16*>(student_slots + at),
                            *reinterpret_cast<const Bytes16*>(teacher_slots + at)},
                  [] {});
                if (Refill) refill(at, at < next_end);
            }
            if (Refill) {
                const unsigned refill_stop = min(quarter_end, next_end);  // the next row may have one group more
#pragma unroll 1
                for (unsigned extra = at; extra < refill_stop; extra += step) refill(extra, true);
                commit_copies();
            }
            at = quarter_end + threadIdx.x * size;
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

template <typename S, Case C, bool Stats>
__global__ void __launch_bounds__(is_lean(C) ? 1024 : 512, 1) resident_rows_kernel(const __grid_constant__ LaunchArgs args) {
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
        groups.set_next_row(pair_of<S, C>(args, args.index.entries[position], 0, vocab));
        groups.template for_each_slot<false, true>([](unsigned, const PairBytes&, const auto&) {});  // only fills the slots
    }
    for (; position < read; position += clusters) {
        const int row = args.index.entries[position];
        RowPair<S> pair = groups.next;
        pair.teacher_aligned = true;  // as in every resident launch; a constant, so that no loop has code for other rows
        groups.advance();
        if (position + clusters < read) {
            groups.set_next_row(pair_of<S, C>(args, args.index.entries[position + clusters], 0, vocab));
        } else {
            groups.set_no_next_row();
        }
        process_row<S, C, Stats>(args, position, row, pair, groups, reducer);
    }
    zero_unread_rows<S>(args, read);
    cluster_sync();  // keeps shared memory alive until the other blocks have read it
}

}  // namespace sad::cuda
