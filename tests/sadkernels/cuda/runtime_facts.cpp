// Runs `runtime.h` on a runtime that this file replaces: two GPUs of 132 SMs, and one kernel. Prints what a test expects.
// Arguments: the `ptxVersion` of the kernel, and the number of clusters that find a place (-1: the query fails).
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "runtime.h"

namespace {
int ptx_version, places, current, attribute_calls, limit, device_calls, queries, errors_left;
}

extern "C" {
const char* cudaGetErrorString(cudaError_t) { return "error"; }
cudaError_t cudaGetLastError() {
    errors_left = 0;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
    *count = 2;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    *device = current;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    ++device_calls;
    current = device;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
    *value = which == cudaDevAttrMultiProcessorCount                ? 132
             : which == cudaDevAttrComputeCapabilityMajor           ? 9
             : which == cudaDevAttrClusterLaunch                    ? 1
             : which == cudaDevAttrMaxSharedMemoryPerBlockOptin     ? 232448
             : which == cudaDevAttrMaxSharedMemoryPerMultiprocessor ? 233472
                                                                    : 0;
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    *attributes = {};
    attributes->ptxVersion = ptx_version;
    attributes->binaryVersion = 90;
    attributes->sharedSizeBytes = 448;
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
    ++attribute_calls;
    limit = value;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
    ++queries;
    *blocks = 2;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t* config) {
    ++queries;
    const bool whole_clusters = config->gridDim.x % config->attrs[0].val.clusterDim.x == 0 && config->numAttrs == 1;
    if (places < 0 || !whole_clusters) {
        errors_left = 1;
        return cudaErrorInvalidClusterSize;
    }
    *clusters = places;
    return cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) { return cudaSuccess; }
}

void kernel(int) {}

int main(int, char** arguments) {
    using namespace sad::cuda;
    ptx_version = std::atoi(arguments[1]);
    places = std::atoi(arguments[2]);
    const auto ask = [](unsigned cluster) {
        return static_cast<int>(blocks_at_once(&kernel, 0, LaunchShape{1, 512, 100000, cluster}));
    };
    std::printf("blocks %d, in clusters %d, ", ask(1), ask(8));
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < 8; ++i) {
        threads.emplace_back([i, &ask] {
            launch(&kernel, LaunchShape{1, 512, 50000 + 10000 * i, 1}, nullptr, 1);
            ask(1);
            ask(8);
        });
    }
    for (std::thread& thread : threads) thread.join();
    std::printf("%d queries, %d limits, the last %d bytes, ", queries, attribute_calls, limit);
    {
        const DeviceGuard guard(0);
    }
    std::printf("devices set %d ", device_calls);
    {
        const DeviceGuard guard(1);
    }
    std::printf("and %d times, now %d, %d errors left\n", device_calls, current, errors_left);
}
