// A pair of rows in memory, or one, and how a block walks it 16 bytes per thread and side.
//
// Rows of GPT-2's 50257 bfloat16 columns begin at any even address, wide accesses only at multiples of 16. So a row is
//
//   edge columns   fewer than a group before the first such address, and fewer than a group at the end: one thread each
//   groups         of 16 bytes: everything the loops touch
//
// The student's row rules. A teacher row that does not begin as far from such an address, or is of another dtype, is read
// column by column: right, but slow. No address outside of a row is touched.
#pragma once

#include "device.cuh"
#include "span_kl_params.h"

namespace sad::cuda {

// A row cut at 16-byte boundaries.
struct Cut {
    int head;    // columns before the first group
    int groups;  // whole groups
    int edges;   // columns that are in no group

    template <typename S>
    static __device__ __forceinline__ Cut of(const S* row, int columns) {
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
    template <typename S>
    __device__ __forceinline__ int column_of_edge(int edge) const {
        return edge < head ? edge : edge + groups * Group<S>::columns;
    }
};

template <typename S>
__device__ __forceinline__ const Word16* word_at(const S* p) {
    return reinterpret_cast<const Word16*>(p);
}

// A teacher's row of any dtype.
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
struct Words {
    Word16 student, teacher;
};

// Two rows, or the same slice of both, in global memory.
template <typename S>
struct PairInMemory {
    using Fetched = Words;

    const S* student;
    TeacherRow teacher;
    bool teacher_wide;  // the teacher's groups begin where the student's do
    Cut cut;

    template <bool Last>
    __device__ __forceinline__ Words fetch(int group) const {
        const int column = cut.column_of_group<S>(group);
        Words words;
        const Word16* s = word_at(student + column);
        words.student = Last ? load_once(s) : *s;
        if (teacher_wide) {
            const Word16* t = word_at(static_cast<const S*>(teacher.first) + column);
            words.teacher = Last ? load_once(t) : *t;
        }
        return words;
    }
    __device__ __forceinline__ void unpack(const Words& words, int group, float (&s)[Group<S>::columns],
                                           float (&t)[Group<S>::columns]) const {
        Group<S>::unpack(words.student, s);
        if (teacher_wide) {
            Group<S>::unpack(words.teacher, t);
        } else {
            const int column = cut.column_of_group<S>(group);
#pragma unroll
            for (int i = 0; i < Group<S>::columns; ++i) t[i] = teacher.at(column + i);
        }
    }
};

// One row, or a slice of it, in global memory.
template <typename S>
struct RowInMemory {
    using Fetched = Word16;

    const S* first;
    Cut cut;

    template <bool Last>
    __device__ __forceinline__ Word16 fetch(int group) const {
        const Word16* word = word_at(first + cut.column_of_group<S>(group));
        return Last ? load_once(word) : *word;
    }
};

// The edge column of this thread, read before anything of the row is written: the gradient may lie where the logits are.
struct Edge {
    bool exists;
    int column;
    float s, t;

    template <typename S>
    static __device__ __forceinline__ Edge of(const PairInMemory<S>& pair) {
        Edge edge{static_cast<int>(threadIdx.x) < pair.cut.edges, 0, 0.0f, 0.0f};
        if (edge.exists) {
            edge.column = pair.cut.template column_of_edge<S>(static_cast<int>(threadIdx.x));
            edge.s = widen(pair.student[edge.column]);
            edge.t = pair.teacher.at(edge.column);
        }
        return edge;
    }
};

// Calls f(group, words) for this thread's groups, with the next ones on their way while f computes. A pass that runs against
// the one before it begins with what that one left in the caches; the `Last` one leaves nothing there.
template <bool Backwards, bool Last, typename Source, typename F>
__device__ __forceinline__ void walk(const Source& source, const F& f) {
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const int mine = source.cut.groups > thread ? (source.cut.groups - thread - 1) / threads + 1 : 0;
    const int step = Backwards ? -threads : threads;
    int group = Backwards ? thread + (mine - 1) * threads : thread;
    typename Source::Fetched next;
    if (mine > 0) next = source.template fetch<Last>(group);
    for (int i = 0; i < mine; ++i, group += step) {
        const typename Source::Fetched words = next;
        if (i + 1 < mine) next = source.template fetch<Last>(group + step);
        f(group, words);
    }
}

// Where the gradient of a row goes.
template <typename S>
struct GradientRow {
    S* first;   // null: nowhere
    bool wide;  // its groups begin where the student's do
    Cut cut;

    __device__ __forceinline__ void store(int group, const float (&g)[Group<S>::columns]) const {
        S* p = first + cut.column_of_group<S>(group);
        if (wide) {
            store_once(reinterpret_cast<Word16*>(p), Group<S>::pack(g));
        } else {
#pragma unroll
            for (int i = 0; i < Group<S>::columns; ++i) p[i] = narrow<S>(g[i]);
        }
    }
    __device__ __forceinline__ void store(const Edge& edge, float g) const { first[edge.column] = narrow<S>(g); }
};

// Zeros into `columns` columns from `first` on, by the whole block.
template <typename S>
__device__ __forceinline__ void fill_zeros(S* first, int columns) {
    const Cut cut = Cut::of(first, columns);
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    for (int group = thread; group < cut.groups; group += threads) {
        store_once(reinterpret_cast<Word16*>(first + cut.column_of_group<S>(group)), Word16{});
    }
    if (thread < cut.edges) first[cut.column_of_edge<S>(thread)] = narrow<S>(0.0f);
}

}  // namespace sad::cuda
