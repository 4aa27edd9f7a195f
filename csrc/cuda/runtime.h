// The CUDA runtime as the kernels use it: launches, the card's figures, and what hides architectures from them.
// With SAD_EMULATED it is `emulation.h`, which runs the same kernels on the host. Device code includes `device.cuh` besides.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(SAD_EMULATED)
#include "emulation.h"
#else
#include <cuda_runtime.h>
#endif

namespace sad::cuda {

struct Card {
    int processors;
    int arch;  // 90 for compute capability 9.0
    std::int64_t l2_bytes;
    std::int64_t block_shared_bytes;      // the most that one block may have
    std::int64_t processor_shared_bytes;  // what the blocks of an SM share
    int block_threads;                    // the most that one block may have
};

struct Launch {
    unsigned blocks, threads;
    std::size_t shared_bytes;
    unsigned cluster;  // blocks that share a row; 1 for none
    unsigned blocks_y = 1;
};

#if defined(SAD_EMULATED)

using Stream = void*;

// What the emulated card is like; tests set it to reach every plan.
inline Card& emulated_card() {
    static Card card{2, 90, 50 << 20, 232448, 233472, 64};
    return card;
}
inline const Card& card(int) { return emulated_card(); }

class DeviceGuard {
 public:
    explicit DeviceGuard(int) {}
    ~DeviceGuard() {}
};

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& shape, Stream, Arguments... arguments) {
    emulation::run({shape.blocks, shape.blocks_y}, shape.threads, shape.shared_bytes, shape.cluster,
                   [&] { kernel(static_cast<Parameters>(arguments)...); });
}

#else

using Stream = cudaStream_t;

inline void check(cudaError_t error, const char* call) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // so that the next call of anyone does not report it again
    throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(error));
}

inline Card read_card(int device) {
    const auto of = [&](cudaDeviceAttr which) {
        int value = 0;
        check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
        return value;
    };
    return {of(cudaDevAttrMultiProcessorCount),
            10 * of(cudaDevAttrComputeCapabilityMajor) + of(cudaDevAttrComputeCapabilityMinor),
            of(cudaDevAttrL2CacheSize),
            of(cudaDevAttrMaxSharedMemoryPerBlockOptin),
            of(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
            of(cudaDevAttrMaxThreadsPerBlock)};
}

inline const Card& card(int device) {  // throws std::out_of_range for a device that is not there
    static const std::vector<Card> cards = [] {
        int count = 0;
        check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
        std::vector<Card> found;
        for (int i = 0; i < count; ++i) found.push_back(read_card(i));
        return found;
    }();
    return cards.at(static_cast<std::size_t>(device));
}

// Makes `device` current, and what was current before afterwards.
class DeviceGuard {
 public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (before_ != device) check(cudaSetDevice(device), "cudaSetDevice");
    }
    ~DeviceGuard() { cudaSetDevice(before_); }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
    int before_ = 0;
};

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& shape, Stream stream, Arguments... arguments) {
    if (shape.shared_bytes > 48 * 1024) {
        check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shape.shared_bytes)),
              "cudaFuncSetAttribute");
    }
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = shape.cluster;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(shape.blocks, shape.blocks_y);
    config.blockDim = dim3(shape.threads);
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = shape.cluster > 1 ? 1 : 0;
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "cudaLaunchKernelEx");
}

#endif

}  // namespace sad::cuda
