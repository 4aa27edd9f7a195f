// 16 floats in one AVX-512 register. Needs F, BW, DQ and VL; uses BF16 if the compiler flags allow it.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "half.h"

namespace sad::cpu {
namespace {

struct Vec {
    static constexpr int width = 16;
    using Mask = __mmask16;
    __m512 v;

    static Vec set(float x) { return {_mm512_set1_ps(x)}; }

    static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static Vec load(const Bfloat16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    static Vec load(const Float16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }

    // Loads the first n < width elements. The other lanes hold -inf, the logit of an absent column.
    static Vec load(const float* p, int n) { return padded(_mm512_maskz_loadu_ps(lanes(n), p), n); }
    static Vec load(const Bfloat16* p, int n) { return padded(widen(_mm256_maskz_loadu_epi16(lanes(n), p)).v, n); }
    static Vec load(const Float16* p, int n) { return padded(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes(n), p)), n); }

    void store(float* p) const { _mm512_storeu_ps(p, v); }
    void store(Bfloat16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow()); }
    void store(Float16* p) const {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
    void store(float* p, int n) const { _mm512_mask_storeu_ps(p, lanes(n), v); }
    void store(Bfloat16* p, int n) const { _mm256_mask_storeu_epi16(p, lanes(n), narrow()); }
    void store(Float16* p, int n) const {
        _mm256_mask_storeu_epi16(p, lanes(n), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }

    friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
    friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
    friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
    friend Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
    friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
    friend Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }  // max and min return b if a or b is NaN
    friend Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
    friend Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
    friend Mask equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
    friend Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
    friend Vec select(Mask m, Vec yes, Vec no) { return {_mm512_mask_blend_ps(m, no.v, yes.v)}; }
    friend float reduce_add(Vec a) { return _mm512_reduce_add_ps(a.v); }
    friend float reduce_max(Vec a) { return _mm512_reduce_max_ps(a.v); }

    // With x = n + f, n an integer and 0 <= f < 1: `fraction` returns f, and times_pow2(m, x) returns m 2^n. For x = -inf,
    // f is 0 and the power is 0.
    static Vec fraction(Vec x) { return {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
    static Vec times_pow2(Vec mantissa, Vec x) { return {_mm512_scalef_ps(mantissa.v, x.v)}; }  // scalef rounds x down

    // A normal x > 0 is mantissa(x) 2^exponent(x) with the mantissa in [2/3, 4/3).
    static Vec exponent(Vec x) { return {_mm512_getexp_ps(_mm512_mul_ps(x.v, _mm512_set1_ps(1.5f)))}; }
    static Vec mantissa(Vec x) { return {_mm512_scalef_ps(x.v, _mm512_sub_ps(_mm512_setzero_ps(), exponent(x).v))}; }

 private:
    static __mmask16 lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }
    static Vec padded(__m512 x, int n) { return {_mm512_mask_blend_ps(lanes(n), _mm512_set1_ps(-__builtin_inff()), x)}; }
    static Vec widen(__m256i bits) {
        alignas(64) static constexpr std::uint16_t to_high_words[32] = {
            0, 0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
        const __m512i words = _mm512_castsi256_si512(bits);
        return {_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, _mm512_load_si512(to_high_words), words))};
    }
    __m256i narrow() const {  // rounds to nearest even; a NaN is unchanged, because arithmetic made it quiet
#if defined(__AVX512BF16__)
        return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));  // one instruction instead of five; denormals become 0
#else
        const __m512i bits = _mm512_castps_si512(v);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        const __m512i rounded = _mm512_mask_add_epi32(bits, _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), bits, bias);
        alignas(64) static constexpr std::uint16_t high_words[32] = {1,  3,  5,  7,  9,  11, 13, 15,
                                                                     17, 19, 21, 23, 25, 27, 29, 31};
        return _mm512_castsi512_si256(_mm512_permutexvar_epi16(_mm512_load_si512(high_words), rounded));
#endif
    }
};

}  // namespace
}  // namespace sad::cpu
