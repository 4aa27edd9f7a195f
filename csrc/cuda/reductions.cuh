// What the threads of a block, and the blocks of a cluster, make of their shares: in an order that never varies, known to
// every thread afterwards, with one barrier each.
#pragma once

#include "device.cuh"

namespace sad::cuda {

__device__ __forceinline__ float max_of_lanes(float x) {
#pragma unroll
    for (int apart = warp_width / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(all_lanes, x, apart));
    return x;
}
__device__ __forceinline__ float sum_of_lanes(float x) {  // the same bits in every lane, since a + b is b + a
#pragma unroll
    for (int apart = warp_width / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(all_lanes, x, apart);
    return x;
}

__device__ __forceinline__ int sum_of_lanes(int x) {
#pragma unroll
    for (int apart = warp_width / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(all_lanes, x, apart);
    return x;
}

// What goes through shared memory: up to eight numbers, in two wide accesses.
struct Share {
    Word16 half[2];

    template <typename T>
    __device__ __forceinline__ void put(const T& numbers) {
        static_assert(sizeof(T) <= sizeof(Share));
        Share share{};
        memcpy(&share, &numbers, sizeof numbers);
        half[0] = share.half[0];
        if (sizeof(T) > sizeof(Word16)) half[1] = share.half[1];
    }
    template <typename T>
    __device__ __forceinline__ T take() const {
        Share share{};
        share.half[0] = half[0];
        if (sizeof(T) > sizeof(Word16)) share.half[1] = half[1];
        T numbers;
        memcpy(&numbers, &share, sizeof numbers);
        return numbers;
    }
};

// At the beginning of shared memory. Two of everything: who writes the one may still be read by others in the other, but not
// two barriers later.
struct Board {
    static constexpr int most_warps = 32;
    Share of_warp[2][most_warps];
    Share of_block[2];
};

class Exchange {
 public:
    __device__ __forceinline__ explicit Exchange() : board_(reinterpret_cast<Board*>(dynamic_shared())) {}

    // Merges the shares of all threads of the block, or of the cluster. T has merge_lanes() and nothing().
    template <typename T>
    __device__ __forceinline__ T over_block(T mine) {
        const int lane = static_cast<int>(threadIdx.x) % warp_width, warp = static_cast<int>(threadIdx.x) / warp_width;
        const int warps = static_cast<int>(blockDim.x) / warp_width;
        Share* shares = board_->of_warp[turn_ & 1];
        turn_ ^= 1;
        mine.merge_lanes();
        if (lane == 0) shares[warp].put(mine);
#if !defined(SAD_TEST_DROP_BARRIER)  // a test proves that the race which this makes is found
        __syncthreads();
#endif
        T whole = T::nothing();
        if (lane < warps) whole = shares[lane].template take<T>();
        whole.merge_lanes();
        return whole;
    }
    template <typename T>
    __device__ __forceinline__ T over_cluster(T mine) {
        const T block = over_block(mine);
        const unsigned blocks = cluster_blocks();
        if (blocks == 1) return block;
        Share* share = &board_->of_block[cluster_turn_ & 1];
        cluster_turn_ ^= 1;
        if (threadIdx.x == 0) share->put(block);
        cluster_sync();
        const unsigned lane = threadIdx.x % warp_width;
        T whole = T::nothing();
        if (lane < blocks) whole = shared_of(share, lane)->template take<T>();
        whole.merge_lanes();
        return whole;
    }

    // The sum of `mine` over the block; `before`, that of the lanes before this one, becomes that of all threads before it.
    __device__ __forceinline__ int sum_before(int mine, int& before) {
        const int lane = static_cast<int>(threadIdx.x) % warp_width, warp = static_cast<int>(threadIdx.x) / warp_width;
        const int warps = static_cast<int>(blockDim.x) / warp_width;
        Share* shares = board_->of_warp[turn_ & 1];
        turn_ ^= 1;
        if (lane == warp_width - 1) shares[warp].put(before + mine);
        __syncthreads();
        int whole = 0;
        for (int other = 0; other < warps; ++other) {
            const int sum = shares[other].take<int>();
            if (other < warp) before += sum;
            whole += sum;
        }
        return whole;
    }

 private:
    Board* board_;
    unsigned turn_ = 0, cluster_turn_ = 0;
};

}  // namespace sad::cuda
