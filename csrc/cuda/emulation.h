// Runs CUDA kernels on the host, for tests. Every CUDA thread is a thread, and barriers and warp shuffles are barriers. So
// AddressSanitizer finds accesses out of bounds, and ThreadSanitizer finds a missing __syncthreads. Blocks run one after the
// other, the blocks of a cluster at the same time. Shared memory has exactly the size that the launch requests and is filled
// with NaN before each block. Needs C++20.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

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

struct Warp {
    explicit Warp(unsigned threads) : barrier(threads) {}
    std::barrier<> barrier;
    std::array<std::uint64_t, warp_size> lanes{};
};

struct Block {
    Block(unsigned threads, std::size_t shared_bytes)
        : barrier(threads), shared(new unsigned char[shared_bytes]), bytes(shared_bytes) {
        for (unsigned first = 0; first < threads; first += warp_size) {
            warps.push_back(std::make_unique<Warp>(std::min(warp_size, threads - first)));
        }
    }
    void fill_with_nan() { std::memset(shared.get(), 0xff, bytes); }

    std::barrier<> barrier;
    std::vector<std::unique_ptr<Warp>> warps;
    std::unique_ptr<unsigned char[]> shared;
    std::size_t bytes;
};

struct Cluster {
    explicit Cluster(unsigned threads) : barrier(threads) {}
    std::barrier<> barrier;
    std::vector<std::unique_ptr<Block>> blocks;
};

struct PendingCopy {
    void* to;
    const void* from;
};

// The position and state of a thread. An asynchronous copy happens in the wait for it, so that a missing wait is noticed.
struct Place {
    dim3 thread, block, block_size, grid;
    unsigned rank = 0;
    Cluster* cluster = nullptr;
    Block* mine = nullptr;
    Warp* warp = nullptr;
    std::vector<std::vector<PendingCopy>> batches;  // the committed batches, then the open one
};

inline thread_local Place here;

// Whether the kernels behave as if compiled for sm_90 or newer. Older code regards every block as a cluster of its own.
inline bool code_has_clusters = true;

struct Trap {};

inline void run(dim3 grid, unsigned threads, std::size_t shared_bytes, unsigned cluster_size,
                const std::function<void()>& kernel) {
    Cluster cluster(threads * cluster_size);
    for (unsigned rank = 0; rank < cluster_size; ++rank) {
        cluster.blocks.push_back(std::make_unique<Block>(threads, shared_bytes));
    }
    std::atomic<bool> trapped = false;
    std::vector<std::thread> team;
    for (unsigned rank = 0; rank < cluster_size; ++rank) {
        for (unsigned t = 0; t < threads; ++t) {
            team.emplace_back([&, rank, t] {
                Block& mine = *cluster.blocks[rank];
                here = {dim3{t}, {}, dim3{threads}, grid, rank, &cluster, &mine, mine.warps[t / warp_size].get(), {{}}};
                for (unsigned y = 0; y < grid.y; ++y) {
                    for (unsigned first = 0; first < grid.x; first += cluster_size) {
                        if (t == 0) mine.fill_with_nan();
                        cluster.barrier.arrive_and_wait();
                        here.block = {first + rank, y, 0};
                        try {
                            kernel();
                        } catch (const Trap&) {
                            trapped = true;
                        }
                        here.batches.assign(1, {});
                        cluster.barrier.arrive_and_wait();
                    }
                }
            });
        }
    }
    for (std::thread& thread : team) thread.join();
    if (trapped) throw std::runtime_error("the emulated kernel stopped in a trap");
}

template <typename T>
T reducer(T value, unsigned from_lane) {
    static_assert(sizeof(T) <= 8);
    Warp& warp = *here.warp;
    std::memcpy(&warp.lanes[here.thread.x % warp_size], &value, sizeof value);
    warp.barrier.arrive_and_wait();
    std::memcpy(&value, &warp.lanes[from_lane], sizeof value);
    warp.barrier.arrive_and_wait();
    return value;
}

}  // namespace sad::cuda::emulation

#define threadIdx (sad::cuda::emulation::here.thread)
#define blockIdx (sad::cuda::emulation::here.block)
#define blockDim (sad::cuda::emulation::here.block_size)
#define gridDim (sad::cuda::emulation::here.grid)

using std::max;
using std::min;

inline unsigned atomicOr(unsigned* p, unsigned bits) { return std::atomic_ref<unsigned>(*p).fetch_or(bits); }

// Stops the launch. Every thread of the cluster must trap at the same place, because the others would wait in a barrier.
[[noreturn]] inline void __trap() { throw sad::cuda::emulation::Trap{}; }

inline void __syncthreads() { sad::cuda::emulation::here.mine->barrier.arrive_and_wait(); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return sad::cuda::emulation::reducer(value, (threadIdx.x % 32) ^ static_cast<unsigned>(mask));
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned by) {
    const unsigned lane = threadIdx.x % 32;
    return sad::cuda::emulation::reducer(value, lane < by ? lane : lane - by);
}
