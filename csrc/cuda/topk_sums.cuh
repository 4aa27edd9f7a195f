// The top-k columns and the label of a row: which columns they are, and the sums over them, the other columns and the tail.
#pragma once

#include "params.h"
#include "rows.cuh"
#include "softmax.cuh"

namespace sad::cuda {

// The arguments of the top-k kernels.
struct TopkLaunchArgs {
    TopkSpanKlParams topk;
    Exponent exponent;
    float grad_scale;           // scale / T
    const std::int32_t* index;  // as in LaunchArgs
    bool grad_aligned;          // 16-byte groups of the gradient start at the same columns as the student's
    int window;                 // columns whose bits fit shared memory, a multiple of 32
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
    __device__ __forceinline__ unsigned excluded_in_group(int group) const {
        const int bit = group * group_columns;
        return bits[bit / 32] >> (bit % 32) & ((1u << group_columns) - 1);
    }
    __device__ __forceinline__ bool edge_excluded(int edge) const {
        const int bit = part.layout.groups * group_columns + edge;
        return bits[bit / 32] >> (bit % 32) & 1;
    }

 private:
    __device__ __forceinline__ void mark_one(int column) const {
        const int here = column - begin, in_groups = part.layout.groups * group_columns;
        if (here < 0 || here >= columns) return;
        int bit = here - part.layout.head;
        if (bit < 0) bit = in_groups + here;  // an edge column before the first group
        if (here >= part.layout.head + in_groups) bit = here;
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

// The softmax of a row, known to all threads. The rest is the columns that are neither in the top k nor the label.
struct TopkSoftmax {
    float rest_shift, rest_sum;
    float tail_shift, tail_sum;  // the rest, and a label outside the top k
    float shift, inverse;        // all columns: shift and inverse sum
    bool has_tail, label_outside_topk;
    float label;  // the label's logit, or its tanh

    template <typename Found>
    static __device__ __forceinline__ TopkSoftmax of(const TopkLaunchArgs& args, std::int64_t row, const Found& found,
                                                     int label, float label_logit) {
        const SpanKlParams& params = args.topk.base;
        TopkSoftmax t;
        t.label = label_logit;
        t.has_tail = found.num_topk < params.vocab;
        t.label_outside_topk = label >= 0 && found.label_in_topk == 0;
        Softmaxes known{};
        if (params.state_given) known = Softmaxes::of(params.state_given[row], params.state_given[params.rows + row]);
        t.rest_shift = params.state_given ? known.t_shift : found.rest.shift;
        t.rest_sum = params.state_given ? 1.0f / known.t_inverse : found.rest.sum;
        t.tail_shift = t.rest_shift, t.tail_sum = t.rest_sum;
        if (t.label_outside_topk) {
            t.tail_shift = fmaxf(t.rest_shift, integer_shift(label_logit * args.exponent.factor));
            t.tail_sum = t.rest_sum * exp2_approx(t.rest_shift - t.tail_shift) + t.label_power(args);
        }
        t.shift = known.s_shift, t.inverse = known.s_inverse;
        if (!params.state_given) {
            t.shift = fmaxf(t.tail_shift, found.topk_shift);
            t.inverse = 1.0f / (found.topk_sum * exp2_approx(found.topk_shift - t.shift) +
                                t.tail_sum * exp2_approx(t.tail_shift - t.shift));
        }
        return t;
    }
    // Returns the power of the label's exponent, relative to the shift of the tail.
    __device__ __forceinline__ float label_power(const TopkLaunchArgs& args) const {
        return exp2_approx(fmaf(label, args.exponent.factor, -tail_shift));
    }
    __device__ __forceinline__ void write_state(const SpanKlParams& params, std::int64_t row) const {
        params.state[row] = fmaf(shift, ln2f, -logf(inverse));
        params.state[params.rows + row] = fmaf(rest_shift, ln2f, logf(rest_sum));
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
