// Runs CUDA kernels on the host, for tests. Every CUDA thread is a fiber: a thread with its own stack that runs until it
// waits in a barrier, and then lets another fiber run. Warp shuffles are barriers of the warp. The blocks of a cluster run
// together, one cluster after the other. Needs C++20 and <ucontext.h>.
//
// AddressSanitizer finds accesses out of bounds, and ThreadSanitizer finds a missing __syncthreads: only barriers, not the
// order in which fibers run, make one thread wait for another in its eyes. These faults are found in every run:
//
//   shared memory   It has exactly the size that the launch requests. It is NaN before the block starts and after it ends.
//   16-byte access  Its address must be a multiple of 16, on both sides of an asynchronous copy.
//   async copy      The target is NaN from the copy's start to the wait for it.
//   barrier         All threads must reach it, or the launch fails.
//
// The environment variable SAD_EMULATION switches on more, see `Modes`.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __noinline__

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace sad::cuda::emulation {

constexpr unsigned warp_size = 32;

// Stops a launch with an error.
struct Fault : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The words of the environment variable SAD_EMULATION, read at every launch.
struct Modes {
    bool eager_copies = false;  // eager-copies: an asynchronous copy happens at its start, not in the wait for it
    std::uint64_t noise = 0;  // noise=SEED: powers and logarithms have the error that PTX allows, and flush subnormals to 0
    std::uint64_t order = 0;  // order=SEED: blocks, and the threads between two barriers, run in random order
    int threads = 64;         // threads=NUMBER: the most threads of a block
    std::string dropped;      // drop-barrier=FUNCTION: __syncthreads() in functions of this name does nothing

    static Modes of_environment();
};

// For ThreadSanitizer: `acquire` comes after every earlier `release` of the same mark.
using Mark = char;
inline void release([[maybe_unused]] Mark& mark) {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(&mark);
#endif
}
inline void acquire([[maybe_unused]] Mark& mark) {
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(&mark);
#endif
}

struct Thread;

struct Barrier {
    explicit Barrier(unsigned threads) : expected(threads) {}
    unsigned expected, round = 0;
    std::vector<Thread*> waiting;
    Mark marks[2]{};  // of even and odd rounds: no thread is in round n + 2 before all have left round n
};

struct Warp {
    explicit Warp(unsigned threads) : barrier(threads) {}
    Barrier barrier;
    std::array<std::uint64_t, warp_size> lanes[2]{};  // of even and odd shuffles
};

struct Block {
    Block(unsigned threads, std::size_t shared_bytes)
        : barrier(threads), shared(new unsigned char[shared_bytes]), bytes(shared_bytes), running(threads) {
        for (unsigned first = 0; first < threads; first += warp_size) {
            warps.push_back(std::make_unique<Warp>(std::min(warp_size, threads - first)));
        }
        fill_with_nan();
    }
    void fill_with_nan() { std::memset(shared.get(), 0xff, bytes); }
    void leave();  // called by every thread at its end

    Barrier barrier;
    std::vector<std::unique_ptr<Warp>> warps;
    std::unique_ptr<unsigned char[]> shared;
    std::size_t bytes;
    std::atomic<unsigned> running;
    Mark end{};
};

struct Cluster {
    Cluster(unsigned count, unsigned threads, std::size_t shared_bytes) : barrier(count * threads) {
        for (unsigned i = 0; i < count; ++i) blocks.push_back(std::make_unique<Block>(threads, shared_bytes));
    }
    Barrier barrier;
    std::vector<std::unique_ptr<Block>> blocks;
};

struct PendingCopy {
    void* to;
    const void* from;
};

// The position and state of a thread.
struct Place {
    dim3 thread, block, block_size, grid;
    unsigned rank = 0, shuffles = 0;
    Cluster* cluster = nullptr;
    Block* mine = nullptr;
    Warp* warp = nullptr;
    std::vector<std::vector<PendingCopy>> batches;  // the committed batches, then the open one
};

// The place of the running thread, and the modes of its launch.
Place& here();
const Modes& modes();

// Whether the kernels behave as if compiled for sm_90 or newer. Older code regards every block as a cluster of its own.
inline bool code_has_clusters = true;

// Waits until all threads of the barrier have called it.
void wait(Barrier& barrier);

// Runs a kernel.
void run(dim3 grid, unsigned threads, std::size_t shared_bytes, unsigned cluster_size, const std::function<void()>& kernel);

// A launch for a `Launcher`. The kernel is the function of this build; `values` points to its arguments.
struct ForeignLaunch {
    const void* kernel;
    std::uint32_t blocks, blocks_y, threads, cluster;
    std::uint64_t shared_bytes, count;
    const void* const* values;
    const std::size_t* sizes;
};

// Runs launches in place of the emulation, such as compiled code in an executor. Returns whether it has run the launch, or
// sets the text of a fault.
using Launcher = bool (*)(const ForeignLaunch*, const char** fault);
inline Launcher launcher = nullptr;

inline bool launched_elsewhere(const ForeignLaunch& launch) {
    const char* fault = nullptr;
    const bool done = launcher(&launch, &fault);
    if (fault) throw Fault(fault);
    return done;
}

template <typename T>
T shuffled(T value, unsigned from_lane) {
    static_assert(sizeof(T) <= 8);
    Warp& warp = *here().warp;
    auto& lanes = warp.lanes[here().shuffles++ % 2];  // written again only after every lane has read
    std::memcpy(&lanes[here().thread.x % warp_size], &value, sizeof value);
    wait(warp.barrier);
    std::memcpy(&value, &lanes[from_lane], sizeof value);
    return value;
}

inline void check_alignment(const void* address) {
    auto bits = reinterpret_cast<std::uintptr_t>(address);
    asm volatile("" : "+r"(bits));  // the compiler may take it for aligned, because the type is
    if (bits % 16 != 0) throw Fault("the emulated kernel: a 16-byte access at an address that is no multiple of 16");
}

inline void copy_async(void* to, const void* from) {
    check_alignment(to);
    check_alignment(from);
    if (modes().eager_copies) {
        std::memcpy(to, from, 16);
    } else {
        std::memset(to, 0xff, 16);
        here().batches.back().push_back({to, from});
    }
}
inline void commit_copies() { here().batches.emplace_back(); }
inline void wait_for_copies(unsigned left) {  // waits until at most `left` of the committed batches are pending
    auto& batches = here().batches;
    while (batches.size() > left + 1) {
        for (const PendingCopy& copy : batches.front()) std::memcpy(copy.to, copy.from, 16);
        batches.erase(batches.begin());
    }
}

inline float flushed(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }

// Returns a number from -2 to 2 that depends on x: the same input always has the same error.
inline int error_of(float x) {
    std::uint64_t bits = (modes().noise << 32 | std::bit_cast<std::uint32_t>(x)) * 0x9e3779b97f4a7c15u;
    bits = (bits ^ bits >> 29) * 0xbf58476d1ce4e5b9u;
    return static_cast<int>((bits >> 32) % 5) - 2;
}

// ex2.approx.ftz.f32: at most 2 units in the last place from the rounded result (PTX ISA); exact for 0.
inline float exp2_approx(float x) {
    if (!modes().noise) return std::exp2(x);
    const float y = flushed(std::exp2(x));
    if (flushed(x) == 0.0f) return 1.0f;
    if (y == 0.0f || !std::isfinite(y)) return y;
    return flushed(std::bit_cast<float>(std::bit_cast<std::uint32_t>(y) + static_cast<std::uint32_t>(error_of(x))));
}

// lg2.approx.ftz.f32: an absolute error of at most 2^-22 between 1/2 and 2, else a relative one (PTX ISA).
inline float log2_approx(float x) {
    if (!modes().noise) return std::log2(x);
    const float y = std::log2(flushed(x));
    if (!std::isfinite(y)) return y;
    const float error = static_cast<float>(error_of(x)) * 0x1p-23f;
    return x > 0.5f && x < 2.0f ? y + error : y * (1.0f + error);
}

}  // namespace sad::cuda::emulation

#define threadIdx (sad::cuda::emulation::here().thread)
#define blockIdx (sad::cuda::emulation::here().block)
#define blockDim (sad::cuda::emulation::here().block_size)
#define gridDim (sad::cuda::emulation::here().grid)

using std::max;
using std::min;

inline unsigned atomicOr(unsigned* p, unsigned bits) {
    return std::atomic_ref<unsigned>(*p).fetch_or(bits, std::memory_order_relaxed);
}

[[noreturn]] inline void __trap() { throw sad::cuda::emulation::Fault("the emulated kernel stopped in a trap"); }

inline void __syncthreads(const std::source_location& caller = std::source_location::current()) {
    const std::string& dropped = sad::cuda::emulation::modes().dropped;
    if (!dropped.empty() && std::strstr(caller.function_name(), dropped.c_str())) return;
    sad::cuda::emulation::wait(sad::cuda::emulation::here().mine->barrier);
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return sad::cuda::emulation::shuffled(value, (threadIdx.x % 32) ^ static_cast<unsigned>(mask));
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned by) {
    const unsigned lane = threadIdx.x % 32;
    return sad::cuda::emulation::shuffled(value, lane < by ? lane : lane - by);
}
