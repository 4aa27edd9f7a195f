// Small kernels, each with one fault that the emulation of `csrc/cuda/emulation.h` must find. Runs the kernel that the
// argument names, and prints `right`, `wrong`, or the error of the launch.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "device.cuh"

namespace {
using namespace sad::cuda;

float* shared_floats() { return reinterpret_cast<float*>(dynamic_shared()); }
Bytes16* shared_groups() { return reinterpret_cast<Bytes16*>(dynamic_shared()); }

template <typename Kernel>
void run(unsigned blocks, unsigned threads, unsigned cluster, Kernel kernel) {
    void (*const launched)(Kernel) = [](Kernel body) { body(); };
    launch(launched, LaunchShape{blocks, threads, 4096, cluster}, nullptr, kernel);
}

struct alignas(16) Groups {
    float x[8];
};

bool reads_before_the_wait() {
    Groups from{{1, 2, 3, 4}};
    float got = 0;
    run(1, 32, 1, [&] {
        if (threadIdx.x != 0) return;
        copy_async(shared_groups(), from.x, true);
        commit_copies();
        got = shared_floats()[0];  // the wait is missing
    });
    return got == 1;
}

bool waits_for_too_few_copies() {
    Groups from{{1, 2, 3, 4}};
    float got = 0;
    run(1, 32, 1, [&] {
        if (threadIdx.x != 0) return;
        copy_async(shared_groups(), from.x, true);
        commit_copies();
        copy_async(shared_groups() + 1, from.x, true);
        commit_copies();
        wait_for_copies<1>();  // should be 0
        got = shared_floats()[4];
    });
    return got == 1;
}

bool refills_before_the_last_read() {
    Groups from{{1, 2, 3, 4, 5, 6, 7, 8}};
    float got = 0;
    run(1, 32, 1, [&] {
        if (threadIdx.x != 0) return;
        copy_async(shared_groups(), from.x, true);
        commit_copies();
        wait_for_copies<0>();
        copy_async(shared_groups(), from.x + 4, true);
        commit_copies();
        got = shared_floats()[0];  // should be above
    });
    return got == 1;
}

bool changes_the_source_of_a_copy() {
    Groups from{{1, 2, 3, 4}};
    float got = 0;
    run(1, 32, 1, [&] {
        if (threadIdx.x != 0) return;
        copy_async(shared_groups(), from.x, true);
        commit_copies();
        from.x[0] = 9;  // should be above
        wait_for_copies<0>();
        got = shared_floats()[0];
    });
    return got == 9;
}

bool copies_from_an_odd_address() {
    Groups from{};
    run(1, 32, 1, [&] { copy_async(shared_groups(), from.x + 1, true); });
    return true;
}

bool loads_from_an_odd_address() {
    Groups from{};
    Bytes16 got;
    run(1, 32, 1, [&] { got = *reinterpret_cast<const Bytes16*>(from.x + 2); });
    return true;
}

bool stores_to_an_odd_address() {
    Groups to{};
    run(1, 32, 1, [&] { store_streaming(reinterpret_cast<Bytes16*>(to.x + 3), Bytes16{}); });
    return true;
}

bool relies_on_exact_powers() {  // log2(2^x) - x, as in a KL that subtracts log-sums
    float largest = 0;
    run(1, 32, 1, [&] {
        if (threadIdx.x != 0) return;
        for (int i = 1; i < 64; ++i) {
            const float x = static_cast<float>(i) / 65.0f;
            largest = std::fmax(largest, std::fabs(log2_approx(exp2_approx(x)) - x));
        }
    });
    return largest < 2.5e-7f;
}

bool relies_on_subnormals() {
    float got = 0;
    run(1, 32, 1, [&] { got = exp2_approx(-130.0f) * 0x1p20f; });
    return got == 0x1p-110f;
}

bool sums_two_warps_only() {
    const auto threads = static_cast<unsigned>(gpu(0).max_block_threads);
    float got = 0;
    run(1, threads, 1, [&] {
        shared_floats()[threadIdx.x] = 1;
        __syncthreads();
        if (threadIdx.x != 0) return;
        for (unsigned i = 0; i < 64; ++i) got += shared_floats()[i];
    });
    return got == static_cast<float>(threads);
}

bool reads_from_the_block_before() {
    std::vector<float> out(9);
    run(8, 32, 1, [&] {
        if (threadIdx.x == 0) out[blockIdx.x + 1] = out[blockIdx.x] + 1;
    });
    return out[8] == 8;
}

bool reads_from_the_thread_before() {
    std::vector<float> out(65);
    run(1, 64, 1, [&] {
        const unsigned thread = threadIdx.x;
        shared_floats()[thread] = static_cast<float>(thread);
        out[thread] = thread == 0 ? 0 : shared_floats()[thread - 1];  // a barrier is missing
    });
    for (unsigned i = 1; i < 64; ++i) {
        if (out[i] != static_cast<float>(i - 1)) return false;
    }
    return true;
}

bool reads_from_a_finished_block() {
    float got = 0;
    run(2, 32, 2, [&] {
        shared_floats()[threadIdx.x] = 1;
        cluster_sync();
        if (cluster_rank() == 1) got = shared_of(shared_floats(), 0)[0];  // cluster_sync() is missing at the end
    });
    return got == 1;
}

bool reads_what_an_earlier_block_left() {
    float got = 0;
    run(2, 32, 1, [&] {
        if (blockIdx.x == 0) shared_floats()[threadIdx.x] = 1;
        if (blockIdx.x == 1) got = shared_floats()[threadIdx.x];
    });
    return got == 1;
}

bool has_a_barrier_in_a_branch() {
    run(1, 64, 1, [] {
        if (threadIdx.x < 40) __syncthreads();
    });
    return true;
}

const std::map<std::string, bool (*)()> kernels{
    {"reads_before_the_wait", reads_before_the_wait},
    {"waits_for_too_few_copies", waits_for_too_few_copies},
    {"refills_before_the_last_read", refills_before_the_last_read},
    {"changes_the_source_of_a_copy", changes_the_source_of_a_copy},
    {"copies_from_an_odd_address", copies_from_an_odd_address},
    {"loads_from_an_odd_address", loads_from_an_odd_address},
    {"stores_to_an_odd_address", stores_to_an_odd_address},
    {"relies_on_exact_powers", relies_on_exact_powers},
    {"relies_on_subnormals", relies_on_subnormals},
    {"sums_two_warps_only", sums_two_warps_only},
    {"reads_from_the_block_before", reads_from_the_block_before},
    {"reads_from_the_thread_before", reads_from_the_thread_before},
    {"reads_from_a_finished_block", reads_from_a_finished_block},
    {"reads_what_an_earlier_block_left", reads_what_an_earlier_block_left},
    {"has_a_barrier_in_a_branch", has_a_barrier_in_a_branch},
};

}  // namespace

int main(int, char** arguments) {
    try {
        std::puts(kernels.at(arguments[1])() ? "right" : "wrong");
    } catch (const std::runtime_error& error) {
        std::puts(error.what());
    }
}
