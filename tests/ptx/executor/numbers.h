// The arithmetic of instructions: 16-bit numbers, flush-to-zero, and approximations with an error inside the documented
// bound.
#pragma once

#include <bit>
#include <cfenv>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace ptx {

inline float flushed(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }

struct Bfloat16 {
    std::uint16_t bits;
    Bfloat16() = default;
    Bfloat16(float x) {  // round to nearest even
        const std::uint32_t wide = std::bit_cast<std::uint32_t>(x);
        bits = static_cast<std::uint16_t>(x != x ? 0x7fff : (wide + 0x7fff + (wide >> 16 & 1)) >> 16);
    }
    operator float() const { return std::bit_cast<float>(std::uint32_t{bits} << 16); }
};

struct Float16 {
    std::uint16_t bits;
    Float16() = default;
    Float16(float x) {  // round to nearest even
        const std::uint32_t wide = std::bit_cast<std::uint32_t>(x), sign = wide >> 16 & 0x8000;
        const std::uint32_t size = wide & 0x7fffffff;
        std::uint32_t half;
        if (size > 0x7f800000) {
            half = 0x7fff;
        } else if (size >= 0x477ff000) {  // 65520
            half = 0x7c00;
        } else if (size < 0x38800000) {  // subnormal: the unit is 2^-24
            half = static_cast<std::uint32_t>(std::nearbyint(std::bit_cast<float>(size) * 0x1p24f));
        } else {
            half = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
        }
        bits = static_cast<std::uint16_t>(size > 0x7f800000 ? half : half | sign);
    }
    operator float() const {
        const std::uint32_t size = bits & 0x7fff, sign = std::uint32_t{bits & 0x8000u} << 16;
        if (size >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (size & 0x3ff) << 13);
        if (size < 0x400)
            return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(static_cast<float>(size) * 0x1p-24f));
        return std::bit_cast<float>(sign | (size + 0x1c000) << 13);
    }
};

// A NaN is ignored if the other number is none; -0 is less than +0.
template <typename T>
T least(T a, T b) {
    if (a != a) return b;
    if (b != b) return a;
    return a < b || (a == b && std::signbit(static_cast<float>(a))) ? a : b;
}
template <typename T>
T greatest(T a, T b) {
    if (a != a) return b;
    if (b != b) return a;
    return a > b || (a == b && std::signbit(static_cast<float>(b))) ? a : b;
}

template <typename H, typename F>
std::uint32_t in_pairs(std::uint32_t a, std::uint32_t b, const F& f) {
    std::uint32_t result = 0;
    for (int i = 0; i < 2; ++i) {
        H x, y;
        x.bits = static_cast<std::uint16_t>(a >> 16 * i);
        y.bits = static_cast<std::uint16_t>(b >> 16 * i);
        result |= std::uint32_t{H(f(x, y)).bits} << 16 * i;
    }
    return result;
}
template <typename H>
std::uint32_t pair_of(float high, float low) {
    return H(low).bits | std::uint32_t{H(high).bits} << 16;
}

template <typename T>
T divided(T a, T b) {
    if (b == 0) return static_cast<T>(-1);
    if constexpr (std::is_signed_v<T>) {
        if (b == -1) return static_cast<T>(0 - a);
    }
    return static_cast<T>(a / b);
}
template <typename T>
T remainder_of(T a, T b) {
    return static_cast<T>(b == 0 ? a : a - divided(a, b) * b);
}
template <typename T>
T shifted_left(T a, std::uint32_t by) {
    return by >= 8 * sizeof(T) ? T{0} : static_cast<T>(a << by);
}
template <typename T>
T shifted_right(T a, std::uint32_t by) {
    if (by >= 8 * sizeof(T)) by = std::is_signed_v<T> ? 8 * sizeof(T) - 1 : by;
    return by >= 8 * sizeof(T) ? T{0} : static_cast<T>(a >> by);
}
// Returns `count` bits from bit `first` on, with the sign of the last one (or of bit 31, if they end above it).
inline std::int32_t bits_of_signed(std::int32_t a, std::uint32_t first, std::uint32_t count) {
    if (count == 0) return 0;
    const std::int64_t wide = first > 31 ? (a < 0 ? -1 : 0) : std::int64_t{a} >> first;
    return static_cast<std::int32_t>(count > 31 ? wide : wide << (64 - count) >> (64 - count));
}
inline std::uint32_t permuted(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
    const std::uint64_t bytes = std::uint64_t{b} << 32 | a;
    std::uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        const std::uint32_t which = selector >> 4 * i & 15;
        std::uint32_t byte = bytes >> 8 * (which & 7) & 0xff;
        if (which & 8) byte = byte & 0x80 ? 0xff : 0;
        result |= byte << 8 * i;
    }
    return result;
}
inline std::uint32_t logic_of_three(std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t table) {
    std::uint32_t result = 0;
    for (int i = 0; i < 8; ++i) {
        if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    }
    return result;
}

// Conversion to an integer saturates, and NaN becomes 0.
template <typename T, typename F>
T to_integer(F rounded) {
    if (rounded != rounded) return 0;
    if (rounded <= static_cast<F>(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
    if (rounded >= static_cast<F>(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
    return static_cast<T>(rounded);
}

inline float fma_rounded_down(float a, float b, float c) {
    volatile float x = a, y = b, z = c;
    const int before = std::fegetround();
    std::fesetround(FE_DOWNWARD);
    volatile float result = std::fma(x, y, z);
    std::fesetround(before);
    return result;
}

// The errors of approximations. The same seed and input always have the same error; seed 0 means correctly rounded results.
struct Noise {
    std::uint64_t seed = 0;

    // Returns a number from -1 to 1.
    double of(float x, float y = 0.0f) const {
        if (!seed) return 0.0;
        std::uint64_t bits = (seed << 32 ^ std::bit_cast<std::uint32_t>(x)) * 0x9e3779b97f4a7c15u;
        bits = (bits ^ bits >> 29 ^ std::bit_cast<std::uint32_t>(y)) * 0xbf58476d1ce4e5b9u;
        bits = (bits ^ bits >> 32) * 0x94d049bb133111ebu;
        return static_cast<double>(bits >> 11) * 0x1p-52 - 1.0;
    }
    // Moves a result by at most `units` units in the last place.
    float moved(float result, int units, float x, float y = 0.0f) const {
        if (!seed || result == 0.0f || !std::isfinite(result)) return result;
        const int by = static_cast<int>(std::lround(of(x, y) * units));
        return std::bit_cast<float>(static_cast<std::uint32_t>(std::bit_cast<std::int32_t>(result) + by));
    }

    // The bounds are those of the PTX ISA.
    float exp2(float x) const { return x == 0.0f ? 1.0f : moved(std::exp2(x), 2, x); }
    float log2(float x) const {
        const float y = std::log2(x);
        if (!seed || !std::isfinite(y)) return y;
        const double unit = x > 0.5f && x < 2.0f ? 0x1p-22 : std::fabs(y) * 0x1p-22;
        // 0.7, because the rounding of the result takes a quarter of the bound
        return static_cast<float>(std::log2(static_cast<double>(x)) + of(x) * unit * 0.7);
    }
    float reciprocal(float x) const { return moved(1.0f / x, 1, x); }
    float quotient(float x, float y) const { return moved(x / y, 2, x, y); }
    float root(float x) const { return moved(std::sqrt(x), 1, x); }
    float reciprocal_root(float x) const { return moved(1.0f / std::sqrt(x), 1, x); }
    float tanh(float x) const { return static_cast<float>(std::tanh(static_cast<double>(x)) * (1.0 + of(x) * 0x1p-11)); }
};

}  // namespace ptx
