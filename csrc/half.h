// Storage types for the 16-bit floating-point formats, and conversions that need no special instructions.
#pragma once

#include <cstdint>
#include <cstring>

namespace sad {

struct Bfloat16 {
    static constexpr std::uint32_t minus_infinity = 0xff80;  // bits of -inf
    std::uint16_t bits;
};
struct Float16 {
    static constexpr std::uint32_t minus_infinity = 0xfc00;
    std::uint16_t bits;
};

namespace {

inline float as_float(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline std::uint32_t as_bits(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float to_float(float x) { return x; }
inline float to_float(Bfloat16 x) { return as_float(static_cast<std::uint32_t>(x.bits) << 16); }
inline float to_float(Float16 x) {
    const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000) << 16;
    const std::uint32_t magnitude = x.bits & 0x7fff;
    if (magnitude >= 0x7c00) return as_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);    // inf, NaN
    if (magnitude >= 0x0400) return as_float(sign | ((magnitude << 13) + ((127 - 15) << 23)));  // normal
    const float value = static_cast<float>(magnitude) * 0x1p-24f;                               // subnormal
    return sign ? -value : value;
}

inline void from_float(float x, float& out) { out = x; }
inline void from_float(float x, Bfloat16& out) {  // round to nearest even
    const std::uint32_t bits = as_bits(x);
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    out.bits = static_cast<std::uint16_t>((nan ? bits | 0x400000 : bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void from_float(float x, Float16& out) {  // round to nearest even
    const std::uint32_t bits = as_bits(x), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    std::uint32_t half;
    if (magnitude > 0x7f800000) {
        half = 0x7e00;
    } else if (magnitude >= 0x477ff000) {  // 65520 and above round to infinity
        half = 0x7c00;
    } else if (magnitude >= 0x38800000) {  // normal
        half = (magnitude - ((127 - 15) << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    } else {  // subnormal: adding 1/2 rounds to the units of 2^-24, which become the last bits of the sum
        half = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000;
    }
    out.bits = static_cast<std::uint16_t>(sign | half);
}

}  // namespace
}  // namespace sad
