// Softmaxes in float32 registers: running sums of powers of two, log-sum-exps, entropies and the argmax.
//
// The first pass adds 2^(factor x - shift). A shift is the maximum rounded to an integer, so the powers stay near 1, and a
// change of the shift multiplies the sum by an exact power of two. From 2^26 on an exponent has too few digits for this;
// `exact_log_sums` (row_task.cuh) then adds the powers again, relative to the largest logit.
//
// The next passes use a `LogSum`: the probability of a column is 2^(factor (x - origin) - log2_sum). The origin is a logit
// near the largest one, so neither a large logit nor a large number that all logits have in common costs digits.
#pragma once

#include <math.h>

#include "divergence.cuh"
#include "reductions.cuh"

namespace sad::cuda {

constexpr float shift_bound = 67108864.0f;  // 2^26, where floats are 8 apart: powers stay below 2^8
constexpr float no_shift = -shift_bound, infinite = __builtin_huge_valf(), largest_float = 3.4028234663852886e38f;

__device__ __forceinline__ float integer_shift(float top) {
    constexpr float rounding_offset = 12582912.0f;  // 1.5 * 2^23: a float of this size has no fraction
#if defined(SAD_EMULATED)
    const float rounded = (top + rounding_offset) - rounding_offset;
#else
    const float rounded = __fsub_rn(__fadd_rn(top, rounding_offset), rounding_offset);
#endif
    return fminf(fmaxf(rounded, -shift_bound), shift_bound);
}

// The running sum of one side, and the largest logit (before scale and cap) with its lowest column.
struct ExpSum {
    float shift, sum, max_logit;
    int argmax_column;

    static __device__ __forceinline__ ExpSum identity() { return {no_shift, 0.0f, -infinite, 0x7fffffff}; }

    template <int G>
    __device__ __forceinline__ void add(const float (&x)[G], float factor) {
        float top = x[0];
#pragma unroll
        for (int i = 1; i < G; ++i) top = fmaxf(top, x[i]);
        const float new_shift = fmaxf(shift, integer_shift(top * factor));
        float new_powers = 0.0f;
#pragma unroll
        for (int i = 0; i < G; ++i) new_powers += exp2_approx(fmaf(x[i], factor, -new_shift));
        sum = fmaf(sum, exp2_approx(shift - new_shift), new_powers);
        shift = new_shift;
    }
    // Updates the argmax with logits of increasing columns. A NaN counts as the largest logit.
    template <int G>
    __device__ __forceinline__ void rank(const float (&x)[G], int first_column) {
#pragma unroll
        for (int i = 0; i < G; ++i) {
            const float value = x[i] == x[i] ? x[i] : infinite;
            if (value > max_logit) max_logit = value, argmax_column = first_column + i;
        }
    }
    __device__ __forceinline__ void rank_edge(float x, int its_column) {  // columns in any order
        const float value = x == x ? x : infinite;
        if (value > max_logit || (value == max_logit && its_column < argmax_column))
            max_logit = value, argmax_column = its_column;
    }
    template <bool Argmax>
    __device__ __forceinline__ void reduce_warp() {
        const float whole = warp_max(shift);
        sum = warp_sum(sum * exp2_approx(shift - whole));
        shift = whole;
        if (Argmax) {
#pragma unroll
            for (int apart = warp_width / 2; apart > 0; apart /= 2) {
                const float other = __shfl_xor_sync(all_lanes, max_logit, apart);
                const int its_column = __shfl_xor_sync(all_lanes, argmax_column, apart);
                if (other > max_logit || (other == max_logit && its_column < argmax_column))
                    max_logit = other, argmax_column = its_column;
            }
        }
    }
    // Whether the exponents are too large for `add`, or there are none. The sum is then undefined.
    __device__ __forceinline__ bool out_of_bounds() const { return fabsf(shift) >= shift_bound; }
    __device__ __forceinline__ int argmax() const { return max_logit == -infinite ? 0 : argmax_column; }
};

template <bool Argmax>
struct ExpSums {
    ExpSum student, teacher;

    static __device__ __forceinline__ ExpSums identity() { return {ExpSum::identity(), ExpSum::identity()}; }
    __device__ __forceinline__ void reduce_warp() {
        student.template reduce_warp<Argmax>();
        teacher.template reduce_warp<Argmax>();
    }
};

// The sums over the columns of both sides.
struct DivergenceSums {
    float value, mean_dlogp;         // the divergence and E_q[G]
    float s_mean_log2, t_mean_log2;  // q log2 q and p log2 p

    static __device__ __forceinline__ DivergenceSums identity() { return {0.0f, 0.0f, 0.0f, 0.0f}; }
    __device__ __forceinline__ void reduce_warp() {
        value = warp_sum(value);
        mean_dlogp = warp_sum(mean_dlogp);
        s_mean_log2 = warp_sum(s_mean_log2);
        t_mean_log2 = warp_sum(t_mean_log2);
    }
};

__device__ __forceinline__ float entropy(float mean_log2) {  // in nats, never negative
    const float nats = -ln2f * mean_log2;
    return nats < 0.0f ? 0.0f : nats;
}

// Two numbers that are reduced together: their maxima or their sums.
template <bool Max>
struct NumberPair {
    float first, second;

    static __device__ __forceinline__ NumberPair identity() {
        return Max ? NumberPair{-largest_float, -largest_float} : NumberPair{0.0f, 0.0f};
    }
    __device__ __forceinline__ void reduce_warp() {
        first = Max ? warp_max(first) : warp_sum(first);
        second = Max ? warp_max(second) : warp_sum(second);
    }
};

// Returns a logit whose exponent is nearly `shift`; any number near it serves as an origin.
__device__ __forceinline__ float origin_of(float shift, const Exponent& e) {
    return fminf(fmaxf(shift * e.inverse, -largest_float), largest_float);
}

// The normalization of a softmax: the probability of a column is 2^(factor (x - origin) - log2_sum).
struct LogSum {
    float origin, log2_sum;

    static __device__ __forceinline__ LogSum of(const ExpSum& x, const Exponent& e) {
        const float origin = origin_of(x.shift, e);
        return {origin, log2f(x.sum) + fmaf(-origin, e.factor, x.shift)};
    }
    // From a sum relative to `origin`. An empty sum has the origin 0.
    static __device__ __forceinline__ LogSum of(float origin, float sum) {
        return {sum == 0.0f ? 0.0f : origin, log2f(sum)};
    }
    // From a log-sum in nats. The product keeps its digits, because log2(e) is the sum of two floats.
    static __device__ __forceinline__ LogSum stored(float log_sum, float origin) {
        return {origin, fmaf(log_sum, 1.4426950216293335f, log_sum * 1.925963033500e-08f)};
    }
    __device__ __forceinline__ float in_nats() const { return log2_sum * ln2f; }
    __device__ __forceinline__ float log2_probability(float x, float factor) const {
        return fmaf(x - origin, factor, -log2_sum);
    }
};

struct LogSums {
    LogSum student, teacher;
};

}  // namespace sad::cuda
