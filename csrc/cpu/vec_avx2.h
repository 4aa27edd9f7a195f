// 8 floats in one AVX2 register. Needs AVX2, FMA, F16C.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "half.h"

namespace sad::cpu {
namespace {

struct Vec {
    static constexpr int width = 8;
    using Mask = __m256;
    __m256 v;

    static Vec set(float x) { return {_mm256_set1_ps(x)}; }

    static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static Vec load(const Bfloat16* p) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
    }
    static Vec load(const Float16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }

    // Loads the first n < width elements. The other lanes hold -inf, the logit of an absent column.
    template <typename T>
    static Vec load(const T* p, int n) {
        float lanes[width];
        for (int i = 0; i < width; ++i) lanes[i] = i < n ? to_float(p[i]) : -__builtin_inff();
        return load(lanes);
    }

    void store(float* p) const { _mm256_storeu_ps(p, v); }
    void store(Bfloat16* p) const {  // rounds to nearest even; a NaN becomes quiet and keeps its sign
        const __m256i bits = _mm256_castps_si256(v);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
        const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
    }
    void store(Float16* p) const {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
    template <typename T>
    void store(T* p, int n) const {
        T lanes[width];
        store(lanes);
        std::memcpy(p, lanes, static_cast<std::size_t>(n) * sizeof(T));
    }

    friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
    friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
    friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
    friend Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
    friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
    friend Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }  // max and min return b if a or b is NaN
    friend Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
    friend Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
    friend Mask equal(Vec a, Vec b) { return _mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ); }
    friend Mask less(Vec a, Vec b) { return _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ); }
    friend Vec select(Mask m, Vec yes, Vec no) { return {_mm256_blendv_ps(no.v, yes.v, m)}; }
    friend float reduce_add(Vec a) {
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
    }
    friend float reduce_max(Vec a) {
        const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
        const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
    }

    // With x = n + f, n an integer and 0 <= f < 1: `fraction` returns f, and times_pow2(m, x) returns m 2^n, or 0 if
    // x < -126.
    static Vec fraction(Vec x) {
        const __m256 clamped = _mm256_max_ps(_mm256_set1_ps(lowest), x.v);  // this order preserves a NaN
        return {_mm256_sub_ps(clamped, _mm256_floor_ps(clamped))};
    }
    static Vec times_pow2(Vec mantissa, Vec x) {
        const __m256i n = _mm256_cvtps_epi32(_mm256_floor_ps(_mm256_max_ps(_mm256_set1_ps(lowest), x.v)));
        const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23);
        const __m256 result = _mm256_mul_ps(mantissa.v, _mm256_castsi256_ps(power));
        return {_mm256_andnot_ps(_mm256_cmp_ps(x.v, _mm256_set1_ps(lowest), _CMP_LT_OQ), result)};
    }

    // A normal x > 0 is mantissa(x) 2^exponent(x) with the mantissa in [2/3, 4/3).
    static Vec exponent(Vec x) {
        const __m256i bits = _mm256_castps_si256(_mm256_mul_ps(x.v, _mm256_set1_ps(1.5f)));
        return {_mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(bits, 23), _mm256_set1_epi32(127)))};
    }
    static Vec mantissa(Vec x) {
        const __m256i shift = _mm256_slli_epi32(_mm256_cvtps_epi32(exponent(x).v), 23);
        return {_mm256_castsi256_ps(_mm256_sub_epi32(_mm256_castps_si256(x.v), shift))};
    }

 private:
    static constexpr float lowest = -126.0f;
};

}  // namespace
}  // namespace sad::cpu
