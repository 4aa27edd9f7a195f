// Softmaxes in float32 registers: running sums of powers of two, log-sum-exps, entropies and the argmax.
//
// The first pass adds 2^(factor x - shift). A shift is an integer near the maximum, so a change of the shift multiplies the
// sum by an exact power of two. From 2^26 on an exponent has too few digits for this;
// `exact_log_sums` (row_task.cuh) then adds the powers again, relative to the largest logit.
//
// The next passes use a `LogSum`: the probability of a column is 2^(factor (x - origin) - log2_sum). The origin is the
// log-sum-exp as a logit, nearly, so neither a large logit nor a large number that all logits have in common costs digits.
#pragma once

#include <math.h>

#include "divergence.cuh"
#include "reductions.cuh"

namespace sad::cuda {

constexpr float shift_bound = 67108864.0f;  // 2^26, where floats are 8 apart: powers stay below 2^8
constexpr float largest_powers = 65536.0f;  // exponents up to 2^4 above the shift lose at most 2^-21 to rounding
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

// A NaN counts as the largest logit.
__device__ __forceinline__ float rank_of(float logit) { return logit == logit ? logit : infinite; }

template <int G>
__device__ __forceinline__ float largest_of(const float (&x)[G]) {
    float top = x[0];
#pragma unroll
    for (int i = 1; i < G; ++i) top = fmaxf(top, x[i]);
    return top;
}

// The running sum of one side, and the largest logit (before scale and cap) with its lowest column.
struct ExpSum {
    float shift, sum, max_logit;
    int argmax_column;  // while a thread adds groups: where the group is, until `find_column`

    static __device__ __forceinline__ ExpSum identity() { return {no_shift, 0.0f, -infinite, 0x7fffffff}; }

    // Returns the sum of the powers of a group relative to the shift. If it is not below `largest_powers`, the shift is too
    // low for this group, or there is a NaN; call `raise_shift` first. Most groups do not need it, because the shift comes
    // from the first group of the thread.
    template <int G>
    __device__ __forceinline__ float powers_of(const float (&x)[G], float factor) const {
        float powers = exp2_approx(fmaf(x[0], factor, -shift));
#pragma unroll
        for (int i = 1; i < G; ++i) powers += exp2_approx(fmaf(x[i], factor, -shift));
        return powers;
    }
    // Raises the shift to the largest exponent of a group.
    template <int G>
    __device__ __forceinline__ void raise_shift(const float (&x)[G], float factor) {
        const float new_shift = fmaxf(shift, integer_shift(largest_of(x) * factor));
        sum *= exp2_approx(shift - new_shift);
        shift = new_shift;
    }
    template <int G>
    __device__ __forceinline__ void add(const float (&x)[G], float factor) {
        float powers = powers_of(x, factor);
        if (!(powers < largest_powers)) {
            raise_shift(x, factor);
            powers = powers_of(x, factor);
        }
        sum += powers;
    }
    // Updates the argmax with the largest logit of a group. A thread calls it for increasing groups.
    __device__ __forceinline__ void rank_group(float top, unsigned at) {
        if (top > max_logit) max_logit = top, argmax_column = static_cast<int>(at);
    }
    // Sets the lowest column of the largest logit. `x` is the group that has it, from `first_column` on.
    template <int G>
    __device__ __forceinline__ void find_column(const float (&x)[G], int first_column) {
        argmax_column = first_column + G - 1;
#pragma unroll
        for (int i = G - 2; i >= 0; --i) {
            if (rank_of(x[i]) == max_logit) argmax_column = first_column + i;
        }
    }
    __device__ __forceinline__ void rank_edge(float x, int its_column) {  // columns in any order
        const float value = rank_of(x);
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
        const float whole = integer_shift(log2f(x.sum));  // so that 2^(shift + whole) is near the sum
        const float origin = origin_of(x.shift + whole, e);
        return {origin, log2f(x.sum * exp2_approx(-whole)) + fmaf(-origin, e.factor, x.shift + whole)};
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
