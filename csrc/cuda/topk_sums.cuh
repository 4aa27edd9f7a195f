// A row some of whose columns are outcomes of their own: which ones they are, and the totals of all others and of the tail.
#pragma once

#include "rows.cuh"
#include "softmax.cuh"
#include "topk_span_kl_params.h"

namespace sad::cuda {

// What the kernels are launched with.
struct TopkWork {
    TopkSpanKlParams p;
    Exponent how;
    float grad_scale;           // scale / T
    const std::int32_t* index;  // as in Work
    bool grad_wide;             // the gradient's groups begin where the student's do
    int window;                 // columns whose bits fit, a multiple of 32
};

// Calls f(column, log_p) for this thread's share of the columns that are listed in a row, absent and repeated ones left out.
template <typename F>
__device__ __forceinline__ void for_topk(const TopkSpanKlParams& p, std::int64_t row, const F& f) {
    const int listed = static_cast<int>(p.listed), vocab = static_cast<int>(p.base.vocab);
    const std::int32_t* columns = p.columns + row * p.listed;
    for (int i = static_cast<int>(threadIdx.x); i < listed; i += static_cast<int>(blockDim.x)) {
        const int column = columns[i];
        if (column >= vocab) break;
        if (i == 0 || column != columns[i - 1]) f(column, p.log_p[row * p.listed + i]);
    }
}

// A part of a row, and which of its columns are listed or the label. Bits are in the order of groups, then edges.
template <typename S>
struct Window {
    static constexpr int group_columns = Group<S>::columns;

    RowInMemory<S> part;
    int begin, columns;
    unsigned* bits;

    static __device__ __forceinline__ Window of(const TopkWork& w, const S* row, int number) {
        const int begin = number * w.window, columns = min(w.window, static_cast<int>(w.p.base.vocab) - begin);
        auto* const bits = reinterpret_cast<unsigned*>(dynamic_shared() + sizeof(Board));
        return {{row + begin, Cut::of(row + begin, columns)}, begin, columns, bits};
    }

    // By all threads. Before, nobody uses the bits any more; afterwards all may.
    __device__ __forceinline__ void mark(const TopkWork& w, std::int64_t row, int label) const {
        const int thread = static_cast<int>(threadIdx.x);
        for (int i = thread; i < (columns + 31) / 32; i += static_cast<int>(blockDim.x)) bits[i] = 0;
        __syncthreads();
        for_topk(w.p, row, [&](int column, float) { mark_one(column); });
        if (thread == 0) mark_one(label);
        __syncthreads();
    }
    __device__ __forceinline__ unsigned taken_of_group(int group) const {
        const int bit = group * group_columns;
        return bits[bit / 32] >> (bit % 32) & ((1u << group_columns) - 1);
    }
    __device__ __forceinline__ bool edge_taken(int edge) const {
        const int bit = part.cut.groups * group_columns + edge;
        return bits[bit / 32] >> (bit % 32) & 1;
    }

 private:
    __device__ __forceinline__ void mark_one(int column) const {
        const int here = column - begin, in_groups = part.cut.groups * group_columns;
        if (here < 0 || here >= columns) return;
        int bit = here - part.cut.head;
        if (bit < 0) bit = in_groups + here;  // an edge at the front
        if (here >= part.cut.head + in_groups) bit = here;
        atomicOr(bits + bit / 32, 1u << (bit % 32));
    }
};

// What the first pass finds.
template <bool Argmax>
struct Outcomes {
    Total rest;             // of the columns that are neither listed nor the label; the argmax over all
    float shift, total;     // of the listed ones
    int listed, the_label;  // how many count, and how many of them are the label

    static __device__ __forceinline__ Outcomes nothing() { return {Total::nothing(), no_shift, 0.0f, 0, 0}; }
    __device__ __forceinline__ void add_topk(float x, float factor) {
        Total sum{shift, total, 0.0f, 0};
        const float one[1] = {x};
        sum.add(one, factor);
        shift = sum.shift, total = sum.total;
    }
    __device__ __forceinline__ void merge_lanes() {
        rest.template merge_lanes<Argmax>();
        Total sum{shift, total, 0.0f, 0};
        sum.template merge_lanes<false>();
        shift = sum.shift, total = sum.total;
        listed = sum_of_lanes(listed);
        the_label = sum_of_lanes(the_label);
    }
};

// Totals of a row, known to all threads.
struct TopkTotals {
    float rest_shift, rest_total;
    float tail_shift, tail_total;  // of the rest, and of a label that is not listed
    float shift, inverse;          // of everything
    bool has_tail, label_alone;
    float label;  // what its exponent is made of

    template <typename Found>
    static __device__ __forceinline__ TopkTotals of(const TopkWork& w, std::int64_t row, const Found& found, int label,
                                                      float its_logit) {
        const SpanKlParams& a = w.p.base;
        TopkTotals t;
        t.label = its_logit;
        t.has_tail = found.listed < a.vocab;
        t.label_alone = label >= 0 && found.the_label == 0;
        Softmaxes known{};
        if (a.state_given) known = Softmaxes::of(a.state_given[row], a.state_given[a.rows + row]);
        t.rest_shift = a.state_given ? known.t_shift : found.rest.shift;
        t.rest_total = a.state_given ? 1.0f / known.t_inverse : found.rest.total;
        t.tail_shift = t.rest_shift, t.tail_total = t.rest_total;
        if (t.label_alone) {
            t.tail_shift = fmaxf(t.rest_shift, integer_shift(its_logit * w.how.factor));
            t.tail_total = t.rest_total * power_of_2(t.rest_shift - t.tail_shift) + t.label_power(w);
        }
        t.shift = known.s_shift, t.inverse = known.s_inverse;
        if (!a.state_given) {
            t.shift = fmaxf(t.tail_shift, found.shift);
            t.inverse =
                1.0f / (found.total * power_of_2(found.shift - t.shift) + t.tail_total * power_of_2(t.tail_shift - t.shift));
        }
        return t;
    }
    // Relative to the tail's shift.
    __device__ __forceinline__ float label_power(const TopkWork& w) const {
        return power_of_2(fmaf(label, w.how.factor, -tail_shift));
    }
    __device__ __forceinline__ void write_state(const SpanKlParams& a, std::int64_t row) const {
        a.state[row] = fmaf(shift, ln2f, -logf(inverse));
        a.state[a.rows + row] = fmaf(rest_shift, ln2f, logf(rest_total));
    }
};

// Sums over the listed columns: the KL, and the q of those that are not the label.
struct TopkSums {
    float kl, others;

    static __device__ __forceinline__ TopkSums nothing() { return {0.0f, 0.0f}; }
    __device__ __forceinline__ void merge_lanes() {
        kl = sum_of_lanes(kl);
        others = sum_of_lanes(others);
    }
};

struct MeanLog2 {
    float sum;  // of q log2 q

    static __device__ __forceinline__ MeanLog2 nothing() { return {0.0f}; }
    __device__ __forceinline__ void merge_lanes() { sum = sum_of_lanes(sum); }
};

}  // namespace sad::cuda
