// A parallel loop with the number of threads given by the caller.
//
// The threads are made for the call and joined before it returns: some 20 us each, nothing against the rows they
// work on, and no pool survives a fork into a DataLoader worker (where an OpenMP region would wait forever).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace sad::cpu {

// Calls body(begin, end) for chunks of [0, n) until all are done; which thread takes which chunk is left open, so
// `body` must write only what belongs to its chunk.
template <typename Body>
void parallel_for(std::int64_t n, std::int64_t chunk, int threads, const Body& body) {
    chunk = std::max<std::int64_t>(chunk, 1);
    const std::int64_t useful = std::min<std::int64_t>(threads, (n + chunk - 1) / chunk);
    if (useful <= 1) {
        if (n > 0) body(0, n);
        return;
    }
    std::atomic<std::int64_t> next{0};
    auto work = [&] {
        for (std::int64_t begin; (begin = next.fetch_add(chunk)) < n;) body(begin, std::min(begin + chunk, n));
    };
    std::vector<std::thread> helpers;
    helpers.reserve(useful - 1);
    try {
        for (std::int64_t i = 1; i < useful; ++i) helpers.emplace_back(work);
    } catch (...) {  // no more threads to be had: those that started share the work
    }
    work();
    for (auto& helper : helpers) helper.join();
}

}  // namespace sad::cpu
