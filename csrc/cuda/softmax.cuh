// Softmaxes in float32 registers: running sums of powers of two, log-sum-exps, entropies and the argmax.
//
// Exponents are a = factor x - shift, the sum is sum 2^a, and a softmax is 2^a / sum. A shift is the maximum rounded to an
// integer. So the powers stay near 1, and a change of the shift multiplies the sum by an exact power of two. Shifts stay
// within 3e38, so the sum of a row in which all logits are -inf is 0.
#pragma once

#include <math.h>

#include "divergence.cuh"
#include "reductions.cuh"

namespace sad::cuda {

constexpr float no_shift = -3.0e38f, infinite = __builtin_huge_valf();

__device__ __forceinline__ float integer_shift(float top) {
    constexpr float rounding_offset = 12582912.0f;  // 1.5 * 2^23: a float of this size has no fraction
#if defined(SAD_EMULATED)
    const float rounded = (top + rounding_offset) - rounding_offset;
#else
    const float rounded = __fsub_rn(__fadd_rn(top, rounding_offset), rounding_offset);
#endif
    return fminf(fmaxf(rounded, no_shift), -no_shift);
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
    __device__ __forceinline__ float log_sum_exp() const { return fmaf(shift, ln2f, logf(sum)); }
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

// The softmaxes of both sides, in the form that `ColumnValues` uses.
struct Softmaxes {
    float s_shift, s_inverse, t_shift, t_inverse;  // shifts and inverse sums
    float log_ratio;                               // log(teacher sum / student sum)

    static __device__ __forceinline__ Softmaxes of(const ExpSum& s, const ExpSum& t) {
        return of(s.shift, 1.0f / s.sum, t.shift, 1.0f / t.sum);
    }
    // From log-sum-exps in nats. Preserves the precision of lse * log2(e).
    static __device__ __forceinline__ Softmaxes of(float s_lse, float t_lse) {
        const float s_shift = integer_shift(s_lse * log2ef), t_shift = integer_shift(t_lse * log2ef);
        return of(s_shift, inverse_sum(s_lse, s_shift), t_shift, inverse_sum(t_lse, t_shift));
    }

 private:
    static __device__ __forceinline__ Softmaxes of(float s_shift, float s_inverse, float t_shift, float t_inverse) {
        return {s_shift, s_inverse, t_shift, t_inverse, logf(s_inverse / t_inverse)};
    }
    static __device__ __forceinline__ float inverse_sum(float lse, float shift) {
        const float rest = fmaf(lse, 1.4426950216293335f, -shift) + lse * 1.925963033500e-08f;  // log2(e) in two floats
        return exp2f(-rest);
    }
};

}  // namespace sad::cuda
