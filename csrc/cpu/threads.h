// Parallel loops with the number of threads given by the caller.
//
// The threads are made for the call and joined before it returns: up to 100 us each, little against the rows they
// work on, and no pool survives a fork into a DataLoader worker (where an OpenMP region would wait forever).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace sad::cpu {

// Calls `work` on the calling thread and on up to `threads` - 1 others.
template <typename Work>
void on_threads(std::int64_t threads, const Work& work) {
    std::vector<std::thread> helpers;
    try {
        for (std::int64_t i = 1; i < threads; ++i) helpers.emplace_back(work);
    } catch (...) {  // no more threads to be had: those that started share the work
    }
    work();
    for (auto& helper : helpers) helper.join();
}

// Hands out the chunks of [0, n), each once, to whoever asks.
class Chunks {
 public:
    Chunks(std::int64_t n, std::int64_t chunk) : n_(n), chunk_(std::max<std::int64_t>(chunk, 1)) {}

    std::int64_t count() const { return (n_ + chunk_ - 1) / chunk_; }

    // Calls body(begin, end) for chunks until none is left. Which thread takes which is left open, so `body` must write only
    // what belongs to its chunk.
    template <typename Body>
    void take(const Body& body) {
        for (std::int64_t begin; (begin = next_.fetch_add(chunk_)) < n_;) body(begin, std::min(begin + chunk_, n_));
    }

 private:
    std::int64_t n_, chunk_;
    std::atomic<std::int64_t> next_{0};
};

template <typename Body>
void parallel_for(std::int64_t n, std::int64_t chunk, int threads, const Body& body) {
    Chunks chunks(n, chunk);
    on_threads(std::min<std::int64_t>(threads, chunks.count()), [&] { chunks.take(body); });
}

// Work in stages, [0, n) in each: merge(stage) follows the last body(stage, i) and precedes the first of the next stage. A
// stage waits for the work of the one before, not for threads: whoever is there takes it, and who starts late holds up
// nobody.
class Stages {
 public:
    Stages(int count, std::int64_t n) : n_(n), progress_(static_cast<std::size_t>(n > 0 ? count : 0)) {}

    // Takes part until all stages are done.
    template <typename Body, typename Merge>
    void take(const Body& body, const Merge& merge) {
        for (int stage = 0; stage < static_cast<int>(progress_.size()); ++stage) {
            while (begun_.load(std::memory_order_acquire) < stage) std::this_thread::yield();
            Progress& progress = progress_[static_cast<std::size_t>(stage)];
            for (std::int64_t i; (i = progress.next.fetch_add(1)) < n_;) {
                body(stage, i);
                if (progress.done.fetch_add(1) + 1 == n_) {
                    merge(stage);
                    begun_.store(stage + 1, std::memory_order_release);
                }
            }
        }
    }

 private:
    struct Progress {
        std::atomic<std::int64_t> next{0}, done{0};
    };
    std::int64_t n_;
    std::vector<Progress> progress_;
    std::atomic<int> begun_{0};
};

}  // namespace sad::cpu
