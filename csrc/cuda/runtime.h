// The CUDA runtime as the launches use it: GPU properties, the current device and kernel launches. With SAD_EMULATED, the
// emulation of `emulation.h` replaces the runtime and runs the same kernels on the host.
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

struct Gpu {
    int sms;
    int arch;  // 90 for compute capability 9.0
    std::int64_t l2_bytes;
    std::int64_t block_shared_bytes;  // maximum per block
    std::int64_t sm_shared_bytes;     // per SM
    int max_block_threads;
};

struct LaunchShape {
    unsigned blocks, threads;
    std::size_t shared_bytes;
    unsigned cluster;  // blocks per cluster; 1 without clusters
    unsigned blocks_y = 1;
};

#if defined(SAD_EMULATED)

using Stream = void*;

// The properties of the emulated GPU. Tests set them to reach every launch plan.
inline Gpu& emulated_gpu() {
    static Gpu gpu{2, 90, 50 << 20, 232448, 233472, 64};
    return gpu;
}
inline const Gpu& gpu(int) { return emulated_gpu(); }

class DeviceGuard {
 public:
    explicit DeviceGuard(int) {}
    ~DeviceGuard() {}
};

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, Stream, Arguments... arguments) {
    emulation::run({shape.blocks, shape.blocks_y}, shape.threads, shape.shared_bytes, shape.cluster,
                   [&] { kernel(static_cast<Parameters>(arguments)...); });
}

#else

using Stream = cudaStream_t;

inline void check(cudaError_t error, const char* call) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // clears the error, so that the next CUDA call does not report it again
    throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(error));
}

inline Gpu read_gpu(int device) {
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

inline const Gpu& gpu(int device) {  // throws std::out_of_range for a device that does not exist
    static const std::vector<Gpu> cards = [] {
        int count = 0;
        check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
        std::vector<Gpu> found;
        for (int i = 0; i < count; ++i) found.push_back(read_gpu(i));
        return found;
    }();
    return cards.at(static_cast<std::size_t>(device));
}

// Makes `device` current during its lifetime, then restores the previous device.
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
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, Stream stream, Arguments... arguments) {
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
