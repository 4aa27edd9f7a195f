// Hardware access of device code: 16-byte accesses, conversions, approximate powers, logarithms and reciprocals,
// asynchronous copies to shared memory, and clusters of blocks. Each function has an emulated version for the host.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"
#include "runtime.h"

#if defined(SAD_EMULATED)
#include <cmath>
#else
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace sad::cuda {

constexpr unsigned all_lanes = 0xffffffffu;
constexpr int warp_width = 32;

// 16 bytes. Loads and stores need an address that is a multiple of 16.
struct alignas(16) Bytes16 {
#if defined(SAD_EMULATED)
    Bytes16() = default;
    Bytes16(const Bytes16& x) { *this = x; }
    Bytes16& operator=(const Bytes16& x) {
        emulation::check_alignment(this);
        emulation::check_alignment(&x);
        for (int i = 0; i < 4; ++i) part[i] = x.part[i];
        return *this;
    }
#endif
    std::uint32_t part[4];
};

#if defined(SAD_EMULATED)

inline unsigned char* dynamic_shared() { return emulation::here().mine->shared.get(); }

using emulation::exp2_approx, emulation::log2_approx;
inline float reciprocal_approx(float x) { return 1.0f / x; }

inline float widen(Bfloat16 x) { return to_float(x); }
inline float widen(Float16 x) { return to_float(x); }
template <typename T>
T narrow(float x) {
    T out;
    from_float(x, out);
    return out;
}
template <typename T>
std::uint32_t narrow_two(float low, float high) {
    return narrow<T>(low).bits | static_cast<std::uint32_t>(narrow<T>(high).bits) << 16;
}
template <typename T>
std::uint32_t largest_of_two_pairs(std::uint32_t a, std::uint32_t b) {
    const auto half = [](std::uint32_t pair, int i) { return widen(T{static_cast<std::uint16_t>(pair >> 16 * i)}); };
    return narrow_two<T>(std::fmax(half(a, 0), half(b, 0)), std::fmax(half(a, 1), half(b, 1)));
}
template <typename T>
std::uint32_t smallest_of_two_pairs(std::uint32_t a, std::uint32_t b) {
    return largest_of_two_pairs<T>(a ^ 0x80008000u, b ^ 0x80008000u) ^ 0x80008000u;
}

// Accesses with a cache hint: no thread reads the data again soon.
template <typename T>
inline T load_streaming(const T* p) {
    return *p;
}
template <typename T>
inline void store_streaming(T* p, const T& x) {
    *p = x;
}

inline void copy_async(Bytes16* to, const void* from, bool wanted) {
    if (wanted) emulation::copy_async(to, from);
}
inline void commit_copies() { emulation::commit_copies(); }
template <int Left>  // waits until at most `Left` of the committed batches are pending
inline void wait_for_copies() {
    emulation::wait_for_copies(Left);
}

inline unsigned cluster_rank() { return emulation::code_has_clusters ? emulation::here().rank : 0; }
inline unsigned cluster_blocks() {
    return emulation::code_has_clusters ? static_cast<unsigned>(emulation::here().cluster->blocks.size()) : 1;
}
inline void cluster_sync() {
    if (!emulation::code_has_clusters) return __syncthreads();
    emulation::wait(emulation::here().cluster->barrier);
}
template <typename T>
inline const T* shared_of(const T* mine, unsigned rank) {
    if (!emulation::code_has_clusters) return mine;
    const auto offset = reinterpret_cast<const unsigned char*>(mine) - dynamic_shared();
    return reinterpret_cast<const T*>(emulation::here().cluster->blocks[rank]->shared.get() + offset);
}

#else

__device__ __forceinline__ unsigned char* dynamic_shared() {
    extern __shared__ __align__(16) unsigned char bytes[];
    return bytes;
}

__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float log2_approx(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float widen(Bfloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
__device__ __forceinline__ float widen(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }
template <typename T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ Bfloat16 narrow<Bfloat16>(float x) {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
__device__ __forceinline__ Float16 narrow<Float16>(float x) {
    return {__half_as_ushort(__float2half_rn(x))};
}
template <typename T>
__device__ __forceinline__ std::uint32_t narrow_two(float low, float high);  // one instruction for two conversions
template <>
__device__ __forceinline__ std::uint32_t narrow_two<Bfloat16>(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return __bfloat16_as_ushort(both.x) | static_cast<std::uint32_t>(__bfloat16_as_ushort(both.y)) << 16;
}
template <>
__device__ __forceinline__ std::uint32_t narrow_two<Float16>(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return __half_as_ushort(both.x) | static_cast<std::uint32_t>(__half_as_ushort(both.y)) << 16;
}

// The larger, or the smaller, of the two lower and of the two upper numbers. A NaN is ignored if the other number is none.
template <typename T>
__device__ __forceinline__ std::uint32_t largest_of_two_pairs(std::uint32_t a, std::uint32_t b);
template <typename T>
__device__ __forceinline__ std::uint32_t smallest_of_two_pairs(std::uint32_t a, std::uint32_t b);
#define SAD_OF_TWO_PAIRS(NAME, TYPE, INSTRUCTION)                                           \
    template <>                                                                             \
    __device__ __forceinline__ std::uint32_t NAME<TYPE>(std::uint32_t a, std::uint32_t b) { \
        std::uint32_t y;                                                                    \
        asm(INSTRUCTION " %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));                         \
        return y;                                                                           \
    }
SAD_OF_TWO_PAIRS(largest_of_two_pairs, Bfloat16, "max.bf16x2")
SAD_OF_TWO_PAIRS(largest_of_two_pairs, Float16, "max.f16x2")
SAD_OF_TWO_PAIRS(smallest_of_two_pairs, Bfloat16, "min.bf16x2")
SAD_OF_TWO_PAIRS(smallest_of_two_pairs, Float16, "min.f16x2")
#undef SAD_OF_TWO_PAIRS

// The caches evict this data first.
__device__ __forceinline__ Bytes16 load_streaming(const Bytes16* p) {
    const uint4 x = __ldcs(reinterpret_cast<const uint4*>(p));
    return {{x.x, x.y, x.z, x.w}};
}
__device__ __forceinline__ void store_streaming(Bytes16* p, const Bytes16& x) {
    __stcs(reinterpret_cast<uint4*>(p), make_uint4(x.part[0], x.part[1], x.part[2], x.part[3]));
}

// Copies nothing if the copy is not `wanted`. The instruction has a predicate, so that a loop needs no branch around it.
__device__ __forceinline__ void copy_async(Bytes16* to, const void* from, bool wanted) {
    asm volatile(
        "{\n"
        "    .reg .pred wanted;\n"
        "    setp.ne.u32 wanted, %2, 0;\n"
        "    @wanted cp.async.cg.shared.global [%0], [%1], 16;\n"
        "}\n" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
        "l"(__cvta_generic_to_global(from)), "r"(static_cast<unsigned>(wanted))
        : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int Left>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(Left) : "memory");
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ unsigned cluster_rank() { return cooperative_groups::this_cluster().block_rank(); }
__device__ __forceinline__ unsigned cluster_blocks() { return cooperative_groups::this_cluster().num_blocks(); }
__device__ __forceinline__ void cluster_sync() { cooperative_groups::this_cluster().sync(); }
template <typename T>
__device__ __forceinline__ const T* shared_of(const T* mine, unsigned rank) {
    return cooperative_groups::this_cluster().map_shared_rank(const_cast<T*>(mine), static_cast<int>(rank));
}
#else  // without clusters, each block is a cluster of its own
__device__ __forceinline__ unsigned cluster_rank() { return 0; }
__device__ __forceinline__ unsigned cluster_blocks() { return 1; }
__device__ __forceinline__ void cluster_sync() { __syncthreads(); }
template <typename T>
__device__ __forceinline__ const T* shared_of(const T* mine, unsigned) {
    return mine;
}
#endif

#endif

__device__ __forceinline__ float widen(float x) { return x; }

// A group: the 16 bytes of T that one thread accesses at once.
template <typename T>
struct Group {
    static constexpr int columns = 8;
    static __device__ __forceinline__ void unpack(const Bytes16& w, float (&x)[8]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            x[2 * i] = widen(T{static_cast<std::uint16_t>(w.part[i] & 0xffff)});
            x[2 * i + 1] = widen(T{static_cast<std::uint16_t>(w.part[i] >> 16)});
        }
    }
    static __device__ __forceinline__ Bytes16 pack(const float (&x)[8]) {
        Bytes16 w;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            w.part[i] = narrow_two<T>(x[2 * i], x[2 * i + 1]);
        }
        return w;
    }
    // Returns whether a number of either group is -inf.
    static __device__ __forceinline__ bool has_minus_infinity(const Bytes16& a, const Bytes16& b) {
        std::uint32_t least = a.part[0];
#pragma unroll
        for (int i = 1; i < 8; ++i) least = smallest_of_two_pairs<T>(least, i < 4 ? a.part[i] : b.part[i - 4]);
        constexpr std::uint32_t minus_infinity = T::minus_infinity << 16;  // the largest bits of all numbers except NaN
        return least >= minus_infinity || least << 16 >= minus_infinity;
    }
    // Returns the largest number. NaNs are ignored unless all are NaN.
    static __device__ __forceinline__ float largest(const Bytes16& w) {
        const std::uint32_t top = largest_of_two_pairs<T>(largest_of_two_pairs<T>(w.part[0], w.part[1]),
                                                          largest_of_two_pairs<T>(w.part[2], w.part[3]));
        return fmaxf(widen(T{static_cast<std::uint16_t>(top & 0xffff)}), widen(T{static_cast<std::uint16_t>(top >> 16)}));
    }
};

template <>
struct Group<float> {
    static constexpr int columns = 4;
    static __device__ __forceinline__ void unpack(const Bytes16& w, float (&x)[4]) { memcpy(x, &w, sizeof w); }
    static __device__ __forceinline__ Bytes16 pack(const float (&x)[4]) {
        Bytes16 w;
        memcpy(&w, x, sizeof w);
        return w;
    }
    static __device__ __forceinline__ float largest(const Bytes16& w) {
        float x[4];
        unpack(w, x);
        return fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
    }
};

}  // namespace sad::cuda
