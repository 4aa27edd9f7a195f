// A row or a pair of rows in global memory, and the loop of a block over it, 16 bytes per thread and side.
//
// A row may start at any address (50257 bfloat16 columns are an odd number of them), but 16-byte accesses need an address
// that is a multiple of 16. So a row is split at such addresses:
//
//   groups         of 16 bytes; the loops process them
//   edge columns   fewer than one group before the first group and fewer than one after the last; one thread per column
//
// The student's row determines the split. A teacher row that is aligned differently, or has another dtype, is read column by
// column, which is slower. No access leaves the row.
#pragma once

#include "device.cuh"
#include "params.h"

namespace sad::cuda {

// The split of a row into groups and edge columns.
struct GroupLayout {
    int head;    // edge columns before the first group
    int groups;  // 16-byte groups
    int edges;   // all edge columns

    template <typename S>
    static __device__ __forceinline__ GroupLayout of(const S* row, int columns) {
        constexpr int size = Group<S>::columns;
        const auto element = reinterpret_cast<std::uintptr_t>(row) / sizeof(S);
        const int head = min(static_cast<int>((size - element % size) % size), columns);
        const int groups = (columns - head) / size;
        return {head, groups, columns - groups * size};
    }
    template <typename S>
    __device__ __forceinline__ int column_of_group(int group) const {
        return head + group * Group<S>::columns;
    }
    // The first column of the group `at` bytes after the first group. The loops count in bytes, so that one number addresses
    // a group in every row and in shared memory.
    template <typename S>
    __device__ __forceinline__ int column_at(unsigned at) const {
        return head + static_cast<int>(at / sizeof(S));
    }
    template <typename S>
    __device__ __forceinline__ int column_of_edge(int edge) const {
        return edge < head ? edge : edge + groups * Group<S>::columns;
    }
};

template <typename S>
__device__ __forceinline__ const Bytes16* group_at(const S* first_group, unsigned at) {
    return reinterpret_cast<const Bytes16*>(reinterpret_cast<const char*>(first_group) + at);
}

// A row of the teacher, of any dtype.
struct TeacherRow {
    const void* first;
    Dtype dtype;

    __device__ __forceinline__ float at(int column) const {
        if (dtype == Dtype::bfloat16) return widen(static_cast<const Bfloat16*>(first)[column]);
        if (dtype == Dtype::float16) return widen(static_cast<const Float16*>(first)[column]);
        return static_cast<const float*>(first)[column];
    }
};

__device__ __forceinline__ const void* row_of(const Rows<const void>& rows, std::int64_t row, int column) {
    return static_cast<const char*>(rows.data) + (rows.offset(row) + column) * size_of(rows.dtype);
}

// The same group of both sides.
struct PairBytes {
    Bytes16 student, teacher;
};

// The rows of both sides, or the same slice of both.
template <typename S>
struct RowPair {
    using Fetched = PairBytes;

    const S* student;
    TeacherRow teacher;
    bool teacher_aligned;  // 16-byte groups start at the same columns on both sides
    GroupLayout layout;

    // Returns the group `at` bytes after the first one.
    template <bool Last>
    __device__ __forceinline__ PairBytes fetch(unsigned at) const {
        PairBytes bytes;
        const Bytes16* s = group_at(student + layout.head, at);
        bytes.student = Last ? load_streaming(s) : *s;
        if (teacher_aligned) {
            const Bytes16* t = group_at(static_cast<const S*>(teacher.first) + layout.head, at);
            bytes.teacher = Last ? load_streaming(t) : *t;
        }
        return bytes;
    }
    __device__ __forceinline__ void unpack(const PairBytes& bytes, unsigned at, float (&s)[Group<S>::columns],
                                           float (&t)[Group<S>::columns]) const {
        Group<S>::unpack(bytes.student, s);
        if (teacher_aligned) {
            Group<S>::unpack(bytes.teacher, t);
        } else {
            const int column = layout.column_at<S>(at);
#pragma unroll
            for (int i = 0; i < Group<S>::columns; ++i) t[i] = teacher.at(column + i);
        }
    }
};

// The row of one side, or a slice of it.
template <typename S>
struct SingleRow {
    using Fetched = Bytes16;

    const S* first;
    GroupLayout layout;

    template <bool Last>
    __device__ __forceinline__ Bytes16 fetch(unsigned at) const {
        const Bytes16* bytes = group_at(first + layout.head, at);
        return Last ? load_streaming(bytes) : *bytes;
    }
};

// The edge column of this thread. Its gradient may overwrite the logits, but no other thread writes there.
struct EdgeColumn {
    int edges;  // the edge columns that this block processes; what follows can be computed again, so it takes no register
    float s, t;

    template <typename S>
    static __device__ __forceinline__ EdgeColumn of(const RowPair<S>& pair, bool in_this_block = true) {
        EdgeColumn edge{in_this_block ? pair.layout.edges : 0, 0.0f, 0.0f};
        if (edge.exists()) {
            edge.s = widen(pair.student[edge.column_of(pair)]);
            edge.t = pair.teacher.at(edge.column_of(pair));
        }
        return edge;
    }
    __device__ __forceinline__ bool exists() const { return static_cast<int>(threadIdx.x) < edges; }
    template <typename S>
    __device__ __forceinline__ int column_of(const RowPair<S>& pair) const {
        return pair.layout.template column_of_edge<S>(static_cast<int>(threadIdx.x));
    }
};

// Calls f(at, bytes) for the groups of this thread, `at` bytes after the first group, and fetches the next group while f
// computes. A backward pass after a forward pass starts with the groups that are still in the caches. `Last` means that no
// later pass reads the row.
template <bool Backward, bool Last, typename Source, typename F>
__device__ __forceinline__ void for_each_group(const Source& source, const F& f) {
    constexpr unsigned size = sizeof(Bytes16);
    const unsigned begin = threadIdx.x * size, step = blockDim.x * size;
    const unsigned end = static_cast<unsigned>(source.layout.groups) * size;
    if (begin >= end) return;
    const unsigned last = begin + (end - 1 - begin) / step * step;
    unsigned at = Backward ? last : begin;
    typename Source::Fetched bytes = source.template fetch<Last>(at);
#pragma unroll 1
    while (true) {
        const unsigned here = at;
        const bool more = here != (Backward ? begin : last);
        at = Backward ? at - step : at + step;
        f(here, bytes, [&] {
            if (more) bytes = source.template fetch<Last>(at);
        });
        if (!more) break;
    }
}

// A row of the gradient.
template <typename S>
struct GradientRow {
    S* first;  // may be null if nothing is written
    bool written;
    bool aligned;  // 16-byte groups start at the same columns as the student's
    GroupLayout layout;

    __device__ __forceinline__ void store(unsigned at, const float (&g)[Group<S>::columns]) const {
        char* const bytes = reinterpret_cast<char*>(first + layout.head) + at;
        if (aligned) {
            store_streaming(reinterpret_cast<Bytes16*>(bytes), Group<S>::pack(g));
        } else {
            S* const p = reinterpret_cast<S*>(bytes);
#pragma unroll
            for (int i = 0; i < Group<S>::columns; ++i) p[i] = narrow<S>(g[i]);
        }
    }
    // Leaves out the columns whose bits are set.
    __device__ __forceinline__ void store_except(unsigned at, const float (&g)[Group<S>::columns], unsigned excluded) const {
        S* const p = first + layout.column_at<S>(at);
#pragma unroll
        for (int i = 0; i < Group<S>::columns; ++i) {
            if (!(excluded >> i & 1)) p[i] = narrow<S>(g[i]);
        }
    }
    __device__ __forceinline__ void store_column(int column, float g) const { first[column] = narrow<S>(g); }
};

// Writes zeros to `columns` columns from `first` on. All threads of the block call it.
template <typename S>
__device__ __forceinline__ void fill_zeros(S* first, int columns) {
    const GroupLayout layout = GroupLayout::of(first, columns);
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    for (int group = thread; group < layout.groups; group += threads) {
        store_streaming(reinterpret_cast<Bytes16*>(first + layout.column_of_group<S>(group)), Bytes16{});
    }
    if (thread < layout.edges) first[layout.column_of_edge<S>(thread)] = narrow<S>(0.0f);
}

}  // namespace sad::cuda
