// A model of how many blocks run at the same time on a GPU. It replaces the queries of the CUDA runtime where there is no
// GPU: in the emulation and in the tests of the launch plans.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace sad::cuda {

struct OccupancyModel {
    std::vector<int> gpc_sms;      // SMs of each GPC; the blocks of a cluster run on the SMs of one GPC
    std::int64_t sm_shared_bytes;  // shared memory per SM
    std::int64_t sm_threads;       // threads per SM
    std::int64_t registers;        // per thread of the kernel; an SM has 65,536
    bool clusters;                 // GPU and code support clusters

    // Returns the number of blocks that run at the same time, 0 if there is no place for one cluster.
    std::int64_t blocks_at_once(std::int64_t threads, std::int64_t shared_bytes, std::int64_t cluster) const {
        if (cluster > 1 && !clusters) return 0;
        constexpr std::int64_t sm_registers = 65536, system_bytes = 1024;  // the system reserves them for each block
        const std::int64_t per_sm = std::min(
            {sm_threads / threads, sm_registers / (registers * threads), sm_shared_bytes / (shared_bytes + system_bytes)});
        std::int64_t blocks = 0;
        for (const int sms : gpc_sms) blocks += sms * per_sm / cluster * cluster;
        return blocks;
    }
};

}  // namespace sad::cuda
