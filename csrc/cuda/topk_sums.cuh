// The top-k columns and the label of a row: which columns they are, and the sums over them, the other columns and the tail.
#pragma once

#include "params.h"
#include "row_index.cuh"
#include "rows.cuh"
#include "softmax.cuh"

namespace sad::cuda {

// The arguments of the top-k kernels.
struct TopkLaunchArgs {
    TopkSpanKlParams topk;
    Exponent exponent;
    float grad_scale;  // scale / T
    RowIndex index;
    bool grad_aligned;  // 16-byte groups of the gradient start at the same columns as the student's
    int window;         // columns whose bits fit shared memory, a multiple of 32
};

// Calls f(column, log_p) for this thread's share of the top-k columns of a row. Skips absent and repeated columns.
template <typename F>
__device__ __forceinline__ void for_each_topk(const TopkSpanKlParams& topk, std::int64_t row, const F& f) {
    const int k = static_cast<int>(topk.k), vocab = static_cast<int>(topk.base.vocab);
    const std::int32_t* columns = topk.columns + row * topk.k;
    for (int i = static_cast<int>(threadIdx.x); i < k; i += static_cast<int>(blockDim.x)) {
        const int column = columns[i];
        if (column >= vocab) break;
        if (i == 0 || column != columns[i - 1]) f(column, topk.log_p[row * topk.k + i]);
    }
}

// A part of a row with one bit per column: 1 for top-k columns and the label. The order is all groups, then edge columns.
template <typename S>
struct Window {
    static constexpr int group_columns = Group<S>::columns;

    SingleRow<S> part;
    int begin, columns;
    unsigned* bits;

    static __device__ __forceinline__ Window of(const TopkLaunchArgs& args, const S* row, int number) {
        const int begin = number * args.window, columns = min(args.window, static_cast<int>(args.topk.base.vocab) - begin);
        auto* const bits = reinterpret_cast<unsigned*>(dynamic_shared() + sizeof(ReductionBuffer));
        return {{row + begin, GroupLayout::of(row + begin, columns)}, begin, columns, bits};
    }

    // Sets the bits. All threads call it, when no thread reads the old bits any more. It ends with a barrier.
    __device__ __forceinline__ void mark(const TopkLaunchArgs& args, std::int64_t row, int label) const {
        const int thread = static_cast<int>(threadIdx.x);
        for (int i = thread; i < (columns + 31) / 32; i += static_cast<int>(blockDim.x)) bits[i] = 0;
        __syncthreads();
        for_each_topk(args.topk, row, [&](int column, float) { mark_one(column); });
        if (thread == 0) mark_one(label);
        __syncthreads();
    }
    __device__ __forceinline__ unsigned excluded_in_group(unsigned at) const {
        const unsigned bit = at / sizeof(S);
        return bits[bit / 32] >> (bit % 32) & ((1u << group_columns) - 1);
    }
    __device__ __forceinline__ bool edge_excluded(int edge) const {
        return is_set(part.layout.groups * group_columns + edge);
    }
    // Whether column `here` of the window is excluded.
    __device__ __forceinline__ bool excluded(int here) const { return is_set(bit_of(here)); }

 private:
    __device__ __forceinline__ int bit_of(int here) const {
        const int in_groups = part.layout.groups * group_columns, head = part.layout.head;
        if (here < head) return in_groups + here;  // an edge column before the first group
        return here < head + in_groups ? here - head : here;
    }
    __device__ __forceinline__ bool is_set(int bit) const { return bits[bit / 32] >> (bit % 32) & 1; }
    __device__ __forceinline__ void mark_one(int column) const {
        const int here = column - begin;
        if (here < 0 || here >= columns) return;
        const int bit = bit_of(here);
        atomicOr(bits + bit / 32, 1u << (bit % 32));
    }
};

// The results of the first pass.
template <bool Argmax>
struct FirstPassSums {
    ExpSum rest;                  // over the columns outside the top k that are not the label; the argmax is over all
    float topk_shift, topk_sum;   // over the top-k columns
    int num_topk, label_in_topk;  // top-k columns that count, and how many of them are the label (0 or 1)

    static __device__ __forceinline__ FirstPassSums identity() { return {ExpSum::identity(), no_shift, 0.0f, 0, 0}; }
    // As `ExpSum::out_of_bounds`, of any of the two sums.
    __device__ __forceinline__ bool out_of_bounds() const {
        return rest.out_of_bounds() || (num_topk > 0 && fabsf(topk_shift) >= shift_bound);
    }
    __device__ __forceinline__ void add_topk(float x, float factor) {
        ExpSum sum{topk_shift, topk_sum, 0.0f, 0};
        const float one[1] = {x};
        sum.add(one, factor);
        topk_shift = sum.shift, topk_sum = sum.sum;
    }
    __device__ __forceinline__ void reduce_warp() {
        rest.template reduce_warp<Argmax>();
        ExpSum sum{topk_shift, topk_sum, 0.0f, 0};
        sum.template reduce_warp<false>();
        topk_shift = sum.shift, topk_sum = sum.sum;
        num_topk = warp_sum(num_topk);
        label_in_topk = warp_sum(label_in_topk);
    }
};

// The sum of 2^(factor (x - origin)) over a set of columns. An empty sum has the least origin.
struct RelativeSum {
    float origin, sum;

    static __device__ __forceinline__ RelativeSum of(float origin, float sum) {
        return {sum == 0.0f ? -largest_float : origin, sum};
    }
    static __device__ __forceinline__ RelativeSum of_shift(float shift, float sum, const Exponent& e) {
        const float origin = origin_of(shift, e);
        return of(origin, sum * exp2_approx(fmaf(-origin, e.factor, shift)));
    }
    static __device__ __forceinline__ RelativeSum of_column(float x) {
        return of(fmaxf(x, -largest_float), x == -infinite ? 0.0f : 1.0f);
    }
    __device__ __forceinline__ RelativeSum with(const RelativeSum& other, float factor) const {
        const float top = fmaxf(origin, other.origin);
        return {top, sum * exp2_approx((origin - top) * factor) + other.sum * exp2_approx((other.origin - top) * factor)};
    }
};

struct ExactTopkSums {
    RelativeSum rest, topk;
};

// Calls f(in_topk, x) for this thread's share of the rest and of the top-k columns, after the first pass. It reads column by
// column, so that it needs few registers. It leaves the bits of the last window.
template <typename S, typename F>
__device__ __forceinline__ void for_each_rest_and_topk(const TopkLaunchArgs& args, std::int64_t row, int label, const F& f) {
    const S* const student = static_cast<const S*>(row_of(args.topk.base.student.rows, row, 0));
    const int vocab = static_cast<int>(args.topk.base.vocab);
#pragma unroll 1
    for (int number = 0; number * args.window < vocab; ++number) {
        const Window<S> window = Window<S>::of(args, student, number);
        if (args.window < vocab) {  // otherwise the bits are still set
            __syncthreads();
            window.mark(args, row, label);
        }
#pragma unroll 1
        for (int i = static_cast<int>(threadIdx.x); i < window.columns; i += static_cast<int>(blockDim.x)) {
            if (!window.excluded(i)) f(false, exponent_input<false>(widen(student[window.begin + i]), args.exponent));
        }
    }
    for_each_topk(args.topk, row,
                  [&](int column, float) { f(true, exponent_input<false>(widen(student[column]), args.exponent)); });
}

// Returns the sums relative to the largest logits, for logits that are too large for the first pass. It is no inline
// function, so that it takes few registers from the kernel. It has two reductions, after which `reducer` writes to the same
// copy of its slots as before.
template <typename S>
__device__ __noinline__ ExactTopkSums exact_topk_sums(const TopkLaunchArgs& args, std::int64_t row, int label,
                                                      Reducer reducer) {
    NumberPair<true> top = NumberPair<true>::identity();
    for_each_rest_and_topk<S>(args, row, label, [&](bool in_topk, float x) {
        float& mine = in_topk ? top.second : top.first;
        mine = fmaxf(mine, x);
    });
    top = reducer.reduce_block(top);
    NumberPair<false> sum = NumberPair<false>::identity();
    for_each_rest_and_topk<S>(args, row, label, [&](bool in_topk, float x) {
        float& mine = in_topk ? sum.second : sum.first;
        mine += exp2_approx((x - (in_topk ? top.second : top.first)) * args.exponent.factor);
    });
    sum = reducer.reduce_block(sum);
    return {RelativeSum::of(top.first, sum.first), RelativeSum::of(top.second, sum.second)};
}

// The softmax of a row, known to all threads. The rest is the columns that are neither in the top k nor the label.
struct TopkSoftmax {
    RelativeSum rest, tail;  // the tail is the rest, and a label outside the top k
    LogSum all;              // of all columns
    bool has_tail, label_outside_topk;

    static __device__ __forceinline__ TopkSoftmax of(const TopkLaunchArgs& args, std::int64_t row, RelativeSum rest,
                                                     RelativeSum topk, int num_topk, bool label_outside_topk, float label) {
        const SpanKlParams& params = args.topk.base;
        const float factor = args.exponent.factor;
        TopkSoftmax t;
        t.has_tail = num_topk < params.vocab;
        t.label_outside_topk = label_outside_topk;
        if (params.state_given) {
            const float* const state = params.state_given + row;
            rest = RelativeSum::of(state[3 * params.rows], expf(state[params.rows]));
            t.all = LogSum::stored(state[0], state[2 * params.rows]);
        }
        t.rest = rest;
        t.tail = label_outside_topk ? rest.with(RelativeSum::of_column(label), factor) : rest;
        if (!params.state_given) {
            const RelativeSum all = t.tail.with(topk, factor);
            t.all = LogSum::of(all.origin, all.sum);
        }
        return t;
    }
    __device__ __forceinline__ void write_state(const SpanKlParams& params, std::int64_t row) const {
        params.state[row] = all.in_nats();
        params.state[params.rows + row] = logf(rest.sum);
        params.state[2 * params.rows + row] = all.origin;
        params.state[3 * params.rows + row] = rest.sum == 0.0f ? 0.0f : rest.origin;
    }
};

// Sums over the top-k columns: the KL, and the q of all columns except the label.
struct TopkSums {
    float kl, others;

    static __device__ __forceinline__ TopkSums identity() { return {0.0f, 0.0f}; }
    __device__ __forceinline__ void reduce_warp() {
        kl = warp_sum(kl);
        others = warp_sum(others);
    }
};

struct MeanLog2 {
    float sum;  // sum of q log2 q

    static __device__ __forceinline__ MeanLog2 identity() { return {0.0f}; }
    __device__ __forceinline__ void reduce_warp() { sum = warp_sum(sum); }
};

}  // namespace sad::cuda
