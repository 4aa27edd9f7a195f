// Reductions over the threads of a block and the blocks of a cluster. Each needs one barrier and has a fixed order, and
// every thread gets the result.
#pragma once

#include "device.cuh"

namespace sad::cuda {

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int apart = warp_width / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(all_lanes, x, apart));
    return x;
}
__device__ __forceinline__ float warp_sum(float x) {  // every lane gets the same bits, because a + b == b + a
#pragma unroll
    for (int apart = warp_width / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(all_lanes, x, apart);
    return x;
}

__device__ __forceinline__ int warp_sum(int x) {
#pragma unroll
    for (int apart = warp_width / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(all_lanes, x, apart);
    return x;
}

// A place in shared memory for a value of at most 32 bytes, written and read in two 16-byte accesses.
struct ReductionSlot {
    Bytes16 half[2];

    template <typename T>
    __device__ __forceinline__ void store(const T& numbers) {
        static_assert(sizeof(T) <= sizeof(ReductionSlot));
        ReductionSlot slot{};
        memcpy(&slot, &numbers, sizeof numbers);
        half[0] = slot.half[0];
        if (sizeof(T) > sizeof(Bytes16)) half[1] = slot.half[1];
    }
    template <typename T>
    __device__ __forceinline__ T load() const {
        ReductionSlot slot{};
        slot.half[0] = half[0];
        if (sizeof(T) > sizeof(Bytes16)) slot.half[1] = half[1];
        T numbers;
        memcpy(&numbers, &slot, sizeof numbers);
        return numbers;
    }
};

// The start of shared memory. Every slot exists twice: while some threads still read one copy, others may write the other.
// After two barriers no thread reads the first copy any more.
struct ReductionBuffer {
    static constexpr int max_warps = 32;
    ReductionSlot of_warp[2][max_warps];
    ReductionSlot of_block[2];
};

class Reducer {
 public:
    __device__ __forceinline__ explicit Reducer() : buffer_(reinterpret_cast<ReductionBuffer*>(dynamic_shared())) {}

    // Returns the reduction of `mine` over the block, or over the cluster. T has reduce_warp() and identity().
    template <typename T>
    __device__ __forceinline__ T reduce_block(T mine) {
        const int lane = static_cast<int>(threadIdx.x) % warp_width, warp = static_cast<int>(threadIdx.x) / warp_width;
        const int warps = static_cast<int>(blockDim.x) / warp_width;
        ReductionSlot* slots = buffer_->of_warp[turn_ & 1];
        turn_ ^= 1;
        mine.reduce_warp();
        if (lane == 0) slots[warp].store(mine);
        __syncthreads();
        T whole = T::identity();
        if (lane < warps) whole = slots[lane].template load<T>();
        whole.reduce_warp();
        return whole;
    }
    template <typename T>
    __device__ __forceinline__ T reduce_cluster(T mine) {
        const T block = reduce_block(mine);
        const unsigned blocks = cluster_blocks();
        if (blocks == 1) return block;
        ReductionSlot* slot = &buffer_->of_block[cluster_turn_ & 1];
        cluster_turn_ ^= 1;
        if (threadIdx.x == 0) slot->store(block);
        cluster_sync();
        const unsigned lane = threadIdx.x % warp_width;
        T whole = T::identity();
        if (lane < blocks) whole = shared_of(slot, lane)->template load<T>();
        whole.reduce_warp();
        return whole;
    }

    // Returns the sum of `mine` over the block. On entry, `before` is the sum over the lower lanes of the warp. On return,
    // it is the sum over all lower threads of the block.
    __device__ __forceinline__ int exclusive_sum(int mine, int& before) {
        const int lane = static_cast<int>(threadIdx.x) % warp_width, warp = static_cast<int>(threadIdx.x) / warp_width;
        const int warps = static_cast<int>(blockDim.x) / warp_width;
        ReductionSlot* slots = buffer_->of_warp[turn_ & 1];
        turn_ ^= 1;
        if (lane == warp_width - 1) slots[warp].store(before + mine);
        __syncthreads();
        int whole = 0;
        for (int other = 0; other < warps; ++other) {
            const int sum = slots[other].load<int>();
            if (other < warp) before += sum;
            whole += sum;
        }
        return whole;
    }

 private:
    ReductionBuffer* buffer_;
    unsigned turn_ = 0, cluster_turn_ = 0;
};

}  // namespace sad::cuda
