// 8 floats in an array, for any processor. Compilers vectorize most of these loops.
#pragma once

#include <cmath>
#include <cstdint>

#include "half.h"

namespace sad::cpu {
namespace {

struct Vec {
    static constexpr int width = 8;
    struct Mask {
        bool on[width];
    };
    float v[width];

    static Vec set(float x) {
        Vec r;
        for (float& lane : r.v) lane = x;
        return r;
    }
    template <typename T>
    static Vec load(const T* p) {
        return load(p, width);
    }
    // Loads the first n elements. The other lanes hold -inf, the logit of an absent column.
    template <typename T>
    static Vec load(const T* p, int n) {
        Vec r;
        for (int i = 0; i < width; ++i) r.v[i] = i < n ? to_float(p[i]) : -INFINITY;
        return r;
    }
    template <typename T>
    void store(T* p) const {
        store(p, width);
    }
    template <typename T>
    void store(T* p, int n) const {
        for (int i = 0; i < n; ++i) from_float(v[i], p[i]);
    }

    friend Vec operator+(Vec a, Vec b) {
        return each(a, b, [](float x, float y) { return x + y; });
    }
    friend Vec operator-(Vec a, Vec b) {
        return each(a, b, [](float x, float y) { return x - y; });
    }
    friend Vec operator*(Vec a, Vec b) {
        return each(a, b, [](float x, float y) { return x * y; });
    }
    friend Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
    friend Vec operator/(Vec a, Vec b) {
        return each(a, b, [](float x, float y) { return x / y; });
    }
    friend Vec max(Vec a, Vec b) {  // max and min return b if a or b is NaN, as the vector instructions do
        return each(a, b, [](float x, float y) { return x > y ? x : y; });
    }
    friend Vec min(Vec a, Vec b) {
        return each(a, b, [](float x, float y) { return x < y ? x : y; });
    }
    friend Vec abs(Vec a) {
        return each(a, a, [](float x, float) { return std::fabs(x); });
    }
    friend Mask equal(Vec a, Vec b) {
        return test(a, b, [](float x, float y) { return x == y; });
    }
    friend Mask less(Vec a, Vec b) {
        return test(a, b, [](float x, float y) { return x < y; });
    }
    friend Vec select(Mask m, Vec yes, Vec no) {
        Vec r;
        for (int i = 0; i < width; ++i) r.v[i] = m.on[i] ? yes.v[i] : no.v[i];
        return r;
    }
    friend float reduce_add(Vec a) {
        return ((a.v[0] + a.v[4]) + (a.v[2] + a.v[6])) + ((a.v[1] + a.v[5]) + (a.v[3] + a.v[7]));
    }
    friend float reduce_max(Vec a) {
        float top = a.v[0];
        for (int i = 1; i < width; ++i) top = a.v[i] > top ? a.v[i] : top;
        return top;
    }

    // With x = n + f, n an integer and 0 <= f < 1: `fraction` returns f, and times_pow2(m, x) returns m 2^n, or 0 if
    // x < -126.
    static Vec fraction(Vec x) {
        return each(x, x, [](float lane, float) {
            const float clamped = lane < lowest ? lowest : lane;  // this order preserves a NaN
            return clamped - std::floor(clamped);
        });
    }
    static Vec times_pow2(Vec mantissa, Vec x) {
        return each(mantissa, x, [](float m, float lane) {
            if (lane < lowest) return 0.0f;
            if (std::isnan(lane)) return lane;
            const auto n = static_cast<std::int32_t>(std::floor(lane));
            return m * as_float(static_cast<std::uint32_t>(n + 127) << 23);
        });
    }

    // A normal x > 0 is mantissa(x) 2^exponent(x) with the mantissa in [2/3, 4/3).
    static Vec exponent(Vec x) {
        return each(x, x, [](float lane, float) { return static_cast<float>(exponent_of(lane)); });
    }
    static Vec mantissa(Vec x) {
        return each(x, x, [](float lane, float) {
            return as_float(as_bits(lane) - (static_cast<std::uint32_t>(exponent_of(lane)) << 23));
        });
    }

 private:
    static constexpr float lowest = -126.0f;
    static std::int32_t exponent_of(float x) { return static_cast<std::int32_t>(as_bits(x * 1.5f) >> 23) - 127; }
    template <typename F>
    static Vec each(Vec a, Vec b, F f) {
        Vec r;
        for (int i = 0; i < width; ++i) r.v[i] = f(a.v[i], b.v[i]);
        return r;
    }
    template <typename F>
    static Mask test(Vec a, Vec b, F f) {
        Mask m;
        for (int i = 0; i < width; ++i) m.on[i] = f(a.v[i], b.v[i]);
        return m;
    }
};

}  // namespace
}  // namespace sad::cpu
