// The kernels for whole rows, on grids that stay: a block (or cluster) takes a row, then the next of its own.
#pragma once

#include "row_work.cuh"

namespace sad::cuda {

// --- rows that are read from memory, or L2, once a pass

template <typename S>
struct StreamedGroups {
    const PairInMemory<S>& pair;

    template <typename F>
    __device__ __forceinline__ void first(const F& f) const {
        walk<false, false>(pair, f);
    }
    template <typename F>
    __device__ __forceinline__ void middle(const F& f) const {
        walk<true, false>(pair, f);
    }
    template <typename F>
    __device__ __forceinline__ void last(const F& f) const {
        walk<true, true>(pair, f);
    }
    template <typename F>
    __device__ __forceinline__ void final(const F& f) const {
        walk<false, true>(pair, f);
    }
};

template <typename S, bool Lean, bool Stats>
__global__ void __launch_bounds__(512, Lean && !Stats ? 2 : 1) streamed_rows_kernel(const Work w) {
    Exchange exchange;
    const int read = w.index[w.a.rows];
    for (int position = static_cast<int>(blockIdx.x); position < read; position += static_cast<int>(gridDim.x)) {
        const std::int64_t row = w.index[position];
        const PairInMemory<S> pair = pair_of<S, Lean>(w, row, 0, static_cast<int>(w.a.vocab));
        StreamedGroups<S> groups{pair};
        work_on_row<S, Lean, Stats>(w, row, pair, groups, exchange);
    }
    clear_unread_rows<S>(w, read);
}

// --- rows that stay in shared memory between passes, of one block or spread over a cluster
//
// Every thread copies the groups that it will read itself, so copies need no barrier. While the last pass works through a
// row, the groups of the next one take the places of those it has done with. They come in quarters: the first pass over the
// next row begins when the first quarter is there.

constexpr int quarters = 4;

template <typename S>
struct ResidentGroups {
    Word16* student;
    Word16* teacher;
    int slots;         // of this block, for each side
    int begin, count;  // of the row: the groups that are here
    PairInMemory<S> next;
    int next_begin, next_count;

    __device__ __forceinline__ static int share(const Cut& cut) {
        return (cut.groups + static_cast<int>(cluster_blocks()) - 1) / static_cast<int>(cluster_blocks());
    }
    // The row after this one; none if there is none.
    __device__ __forceinline__ void expect(const PairInMemory<S>& row) {
        next = row;
        const int each = share(row.cut), rank = static_cast<int>(cluster_rank());
        next_begin = min(rank * each, row.cut.groups);
        next_count = min(each, row.cut.groups - next_begin);
    }
    __device__ __forceinline__ void expect_none() { next_count = 0; }
    __device__ __forceinline__ void advance() {
        begin = next_begin;
        count = next_count;
    }

    template <bool Arriving, bool Refill, typename F>
    __device__ __forceinline__ void walk_slots(const F& f) {
        const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
        const int rounds = (slots + threads - 1) / threads;
#pragma unroll 1
        for (int quarter = 0; quarter < quarters; ++quarter) {
            if (Arriving) {
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
            const int end = min((quarter + 1) * rounds / quarters * threads, slots);
#pragma unroll 1
            for (int slot = quarter * rounds / quarters * threads + thread; slot < end; slot += threads) {
                if (slot < count) f(begin + slot, Words{student[slot], teacher[slot]});
                if (Refill && slot < next_count) {
                    const int column = next.cut.template column_of_group<S>(next_begin + slot);
                    copy_async(student + slot, next.student + column);
                    copy_async(teacher + slot, static_cast<const S*>(next.teacher.first) + column);
                }
            }
            if (Refill) commit_copies();
        }
    }

    template <typename F>
    __device__ __forceinline__ void first(const F& f) {
        walk_slots<true, false>(f);
    }
    template <typename F>
    __device__ __forceinline__ void middle(const F& f) {
        walk_slots<false, false>(f);
    }
    template <typename F>
    __device__ __forceinline__ void last(const F& f) {
        walk_slots<false, true>(f);
    }
    template <typename F>
    __device__ __forceinline__ void final(const F& f) {
        walk_slots<false, true>(f);
    }
};

template <typename S, bool Lean, bool Stats>
__global__ void __launch_bounds__(Lean && !Stats ? 1024 : 512, 1) resident_rows_kernel(const Work w) {
    Exchange exchange;
    Word16* const shared = reinterpret_cast<Word16*>(dynamic_shared() + sizeof(Board));
    ResidentGroups<S> groups{};
    groups.student = shared;
    groups.teacher = shared + w.slots;
    groups.slots = w.slots;
    const int read = w.index[w.a.rows], vocab = static_cast<int>(w.a.vocab);
    const int clusters = static_cast<int>(gridDim.x / cluster_blocks());
    int position = static_cast<int>(blockIdx.x / cluster_blocks());
    if (position < read) {
        groups.expect(pair_of<S, Lean>(w, w.index[position], 0, vocab));
        groups.template walk_slots<false, true>([](int, const Words&) {});  // nothing is here yet: it only fills
    }
    for (; position < read; position += clusters) {
        const std::int64_t row = w.index[position];
        const PairInMemory<S> pair = groups.next;
        groups.advance();
        if (position + clusters < read) {
            groups.expect(pair_of<S, Lean>(w, w.index[position + clusters], 0, vocab));
        } else {
            groups.expect_none();
        }
        work_on_row<S, Lean, Stats>(w, row, pair, groups, exchange);
    }
    clear_unread_rows<S>(w, read);
    cluster_sync();  // nobody leaves while others may read what it put up
}

}  // namespace sad::cuda
