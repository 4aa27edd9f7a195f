// The CUDA runtime as the launches use it: GPU properties, the current device, occupancy and kernel launches. With
// SAD_EMULATED, the emulation of `emulation.h` replaces the runtime and runs the same kernels on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(SAD_EMULATED)
#include <array>
#include <tuple>

#include "emulation.h"
#include "occupancy.h"
#else
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <tuple>
#include <utility>
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

// The emulated GPU. Tests set it to reach every launch plan.
struct EmulatedGpu {
    Gpu gpu;
    std::vector<int> gpc_sms;  // SMs of each GPC
    int code_arch;             // the architecture that the kernels behave as if compiled for
    int ptx_version;           // the architecture that the runtime reports for the kernels
};

inline EmulatedGpu& emulated_gpu() {
    static EmulatedGpu emulated{{2, 90, 50 << 20, 232448, 233472, 64}, {2}, 90, 90};
    return emulated;
}
inline Gpu gpu(int) {
    Gpu properties = emulated_gpu().gpu;
    properties.max_block_threads = emulation::Modes::of_environment().threads;
    return properties;
}

class DeviceGuard {
 public:
    explicit DeviceGuard(int) {}
    ~DeviceGuard() {}
};

template <typename Kernel>
std::int64_t blocks_at_once(Kernel*, int, const LaunchShape& shape) {
    const EmulatedGpu& card = emulated_gpu();
    const bool clusters = card.gpu.arch >= 90 && card.ptx_version >= 90;
    const OccupancyModel model{card.gpc_sms, card.gpu.sm_shared_bytes, 2048, 64, clusters};
    return model.blocks_at_once(shape.threads, static_cast<std::int64_t>(shape.shared_bytes), shape.cluster);
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, Stream, Arguments... arguments) {
    if (emulation::launcher) {
        const std::tuple<Parameters...> values{static_cast<Parameters>(arguments)...};
        const auto pointers =
            std::apply([](const auto&... x) { return std::array<const void*, sizeof...(x)>{&x...}; }, values);
        const std::array<std::size_t, sizeof...(Parameters)> sizes{sizeof(Parameters)...};
        const emulation::ForeignLaunch foreign{reinterpret_cast<const void*>(kernel),
                                               shape.blocks,
                                               shape.blocks_y,
                                               shape.threads,
                                               shape.cluster,
                                               shape.shared_bytes,
                                               sizes.size(),
                                               pointers.data(),
                                               sizes.data()};
        if (emulation::launched_elsewhere(foreign)) return;
    }
    emulation::code_has_clusters = emulated_gpu().code_arch >= 90;
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
        changed_ = before_ != device;
        if (changed_) check(cudaSetDevice(device), "cudaSetDevice");
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
    int before_ = 0;
    bool changed_ = false;
};

// A launch in the form that the runtime takes.
struct Configuration {
    Configuration(const LaunchShape& shape, Stream stream) {
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim.x = shape.cluster;
        cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
        config.gridDim = dim3(shape.blocks, shape.blocks_y);
        config.blockDim = dim3(shape.threads);
        config.dynamicSmemBytes = shape.shared_bytes;
        config.stream = stream;
        config.attrs = &cluster;
        config.numAttrs = shape.cluster > 1 ? 1 : 0;
    }
    Configuration(const Configuration&) = delete;  // `config` points to `cluster`
    Configuration& operator=(const Configuration&) = delete;

    cudaLaunchAttribute cluster{};
    cudaLaunchConfig_t config{};
};

// What the runtime knows about kernels. Each fact is queried once per device, and queries take a lock.
class KernelFacts {
 public:
    static KernelFacts& of_process() {
        static KernelFacts facts;
        return facts;
    }

    // Lets launches of the kernel on the current device use all shared memory that a block may have. The limit is the same
    // for every launch, so that threads that launch one kernel with different sizes do not disturb each other.
    void allow_shared_memory(const void* kernel, int device) {
        const std::lock_guard<std::mutex> lock(mutex_);
        of(kernel, device);
    }

    // Returns how many blocks of the kernel run at the same time on the current device, 0 if it cannot run in this shape.
    std::int64_t blocks_at_once(const void* kernel, int device, const LaunchShape& shape) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto key = std::make_tuple(kernel, device, shape.threads, shape.shared_bytes, shape.cluster);
        const auto known = blocks_.find(key);
        if (known != blocks_.end()) return known->second;
        const std::int64_t blocks = shape.cluster > 1 ? of(kernel, device).clusters ? blocks_in_clusters(kernel, shape) : 0
                                                      : single_blocks(kernel, device, shape);
        return blocks_[key] = blocks;
    }

 private:
    struct Facts {
        bool clusters;  // the GPU runs clusters, and the code is compiled for clusters
    };

    // Code for an architecture below 9.0 regards every block as a cluster of its own, on newer GPUs too. `ptxVersion` is
    // this architecture; `binaryVersion` is that of the GPU if the driver has compiled the code.
    const Facts& of(const void* kernel, int device) {
        const auto known = facts_.find({kernel, device});
        if (known != facts_.end()) return known->second;
        cudaFuncAttributes attributes{};
        check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
        const auto most = gpu(device).block_shared_bytes - static_cast<std::int64_t>(attributes.sharedSizeBytes);
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most)),
              "cudaFuncSetAttribute");
        int launches = 0;
        check(cudaDeviceGetAttribute(&launches, cudaDevAttrClusterLaunch, device), "cudaDeviceGetAttribute");
        return facts_[{kernel, device}] = {launches != 0 && attributes.ptxVersion >= 90};
    }

    std::int64_t single_blocks(const void* kernel, int device, const LaunchShape& shape) {
        of(kernel, device);
        int per_sm = 0;
        check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, kernel, static_cast<int>(shape.threads),
                                                            shape.shared_bytes),
              "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
        return std::int64_t{per_sm} * gpu(device).sms;
    }

    // A cluster needs the SMs of one GPC, so there may be no place for it in a partition of a GPU (MIG, MPS).
    static std::int64_t blocks_in_clusters(const void* kernel, LaunchShape shape) {
        int clusters = 0;
        shape.blocks = shape.cluster;  // the grid does not change the number, but must be whole clusters
        const Configuration configuration(shape, nullptr);
        if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &configuration.config) != cudaSuccess) {
            cudaGetLastError();  // clears the error
            return 0;
        }
        return std::int64_t{clusters} * shape.cluster;
    }

    std::mutex mutex_;
    std::map<std::pair<const void*, int>, Facts> facts_;
    std::map<std::tuple<const void*, int, unsigned, std::size_t, unsigned>, std::int64_t> blocks_;
};

template <typename Kernel>
std::int64_t blocks_at_once(Kernel* kernel, int device, const LaunchShape& shape) {
    return KernelFacts::of_process().blocks_at_once(reinterpret_cast<const void*>(kernel), device, shape);
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, Stream stream, Arguments... arguments) {
    if (shape.shared_bytes > 48 * 1024) {
        int device = 0;
        check(cudaGetDevice(&device), "cudaGetDevice");
        KernelFacts::of_process().allow_shared_memory(reinterpret_cast<const void*>(kernel), device);
    }
    const Configuration configuration(shape, stream);
    check(cudaLaunchKernelEx(&configuration.config, kernel, static_cast<Parameters>(arguments)...), "cudaLaunchKernelEx");
}

#endif

}  // namespace sad::cuda
