// Softmaxes in float32 registers and powers of two: running totals, log-sum-exps, entropies, argmax.
//
// Exponents a = factor x - shift, softmax 2^a / total, total = sum 2^a. A shift is the maximum rounded to an integer: the
// powers stay near 1, and to move a total to another shift multiplies it by an exact power of two. Shifts stay within 3e38,
// so a row of nothing but -inf has total 0.
#pragma once

#include <math.h>

#include "divergence.cuh"
#include "reductions.cuh"

namespace sad::cuda {

constexpr float no_shift = -3.0e38f, infinite = __builtin_huge_valf();

__device__ __forceinline__ float integer_shift(float top) {
    constexpr float no_room_for_a_fraction = 12582912.0f;  // 1.5 * 2^23
#if defined(SAD_EMULATED)
    const float rounded = (top + no_room_for_a_fraction) - no_room_for_a_fraction;
#else
    const float rounded = __fsub_rn(__fadd_rn(top, no_room_for_a_fraction), no_room_for_a_fraction);
#endif
    return fminf(fmaxf(rounded, no_shift), -no_shift);
}

// One side of a row: shift and total, and the largest logit with its lowest column.
struct Total {
    float shift, total, best;
    int column;

    static __device__ __forceinline__ Total nothing() { return {no_shift, 0.0f, -infinite, 0x7fffffff}; }

    template <int G>
    __device__ __forceinline__ void add(const float (&x)[G], float factor) {
        float top = x[0];
#pragma unroll
        for (int i = 1; i < G; ++i) top = fmaxf(top, x[i]);
        const float new_shift = fmaxf(shift, integer_shift(top * factor));
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < G; ++i) sum += power_of_2(fmaf(x[i], factor, -new_shift));
        total = fmaf(total, power_of_2(shift - new_shift), sum);
        shift = new_shift;
    }
    // For columns that come in order, the logits as they were given; a NaN counts as the largest.
    template <int G>
    __device__ __forceinline__ void rank(const float (&x)[G], int first_column) {
#pragma unroll
        for (int i = 0; i < G; ++i) {
            const float value = x[i] == x[i] ? x[i] : infinite;
            if (value > best) best = value, column = first_column + i;
        }
    }
    __device__ __forceinline__ void rank_edge(float x, int its_column) {  // out of order
        const float value = x == x ? x : infinite;
        if (value > best || (value == best && its_column < column)) best = value, column = its_column;
    }
    template <bool Argmax>
    __device__ __forceinline__ void merge_lanes() {
        const float whole = max_of_lanes(shift);
        total = sum_of_lanes(total * power_of_2(shift - whole));
        shift = whole;
        if (Argmax) {
#pragma unroll
            for (int apart = warp_width / 2; apart > 0; apart /= 2) {
                const float other = __shfl_xor_sync(all_lanes, best, apart);
                const int its_column = __shfl_xor_sync(all_lanes, column, apart);
                if (other > best || (other == best && its_column < column)) best = other, column = its_column;
            }
        }
    }
    __device__ __forceinline__ float log_sum_exp() const { return fmaf(shift, ln2f, logf(total)); }
    __device__ __forceinline__ int argmax() const { return best == -infinite ? 0 : column; }
};

template <bool Argmax>
struct Totals {
    Total student, teacher;

    static __device__ __forceinline__ Totals nothing() { return {Total::nothing(), Total::nothing()}; }
    __device__ __forceinline__ void merge_lanes() {
        student.template merge_lanes<Argmax>();
        teacher.template merge_lanes<Argmax>();
    }
};

// What a pass over both rows adds up.
struct Sums {
    float value, pull;               // the divergence, E_q[G]
    float s_mean_log2, t_mean_log2;  // q log2 q, p log2 p

    static __device__ __forceinline__ Sums nothing() { return {0.0f, 0.0f, 0.0f, 0.0f}; }
    __device__ __forceinline__ void merge_lanes() {
        value = sum_of_lanes(value);
        pull = sum_of_lanes(pull);
        s_mean_log2 = sum_of_lanes(s_mean_log2);
        t_mean_log2 = sum_of_lanes(t_mean_log2);
    }
};

__device__ __forceinline__ float entropy(float mean_log2) {  // in nats; rounding does not make it negative
    const float nats = -ln2f * mean_log2;
    return nats < 0.0f ? 0.0f : nats;
}

// The two softmaxes of a row as the columns need them.
struct Softmaxes {
    float s_shift, s_inverse, t_shift, t_inverse;  // inverse totals
    float log_ratio;                               // log(total_t / total_s)

    static __device__ __forceinline__ Softmaxes of(const Total& s, const Total& t) {
        return of(s.shift, 1.0f / s.total, t.shift, 1.0f / t.total);
    }
    // From stored log-sum-exps, without losing digits of lse * log2(e).
    static __device__ __forceinline__ Softmaxes of(float s_lse, float t_lse) {
        const float s_shift = integer_shift(s_lse * log2ef), t_shift = integer_shift(t_lse * log2ef);
        return of(s_shift, inverse_total(s_lse, s_shift), t_shift, inverse_total(t_lse, t_shift));
    }

 private:
    static __device__ __forceinline__ Softmaxes of(float s_shift, float s_inverse, float t_shift, float t_inverse) {
        return {s_shift, s_inverse, t_shift, t_inverse, logf(s_inverse / t_inverse)};
    }
    static __device__ __forceinline__ float inverse_total(float lse, float shift) {
        const float rest = fmaf(lse, 1.4426950216293335f, -shift) + lse * 1.925963033500e-08f;  // log2(e) in two floats
        return exp2f(-rest);
    }
};

}  // namespace sad::cuda
