// Parallel loops in which the caller decides the number of threads.
//
// Each call starts its threads and joins them before it returns. A start costs up to 100 us, which is little compared to the
// work on the rows. There is no thread pool, because a pool does not survive a fork into a DataLoader worker (an OpenMP
// region would wait forever there).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace sad::cpu {

// Calls `work` on the calling thread and on at most `threads` - 1 others.
template <typename Work>
void run_on_threads(std::int64_t threads, const Work& work) {
    std::vector<std::thread> helpers;
    try {
        for (std::int64_t i = 1; i < threads; ++i) helpers.emplace_back(work);
    } catch (...) {  // the system has no more threads: the ones that started share the work
    }
    work();
    for (auto& helper : helpers) helper.join();
}

// The chunks of [0, n). Each chunk is processed once, by one of the threads that call `process`.
class Chunks {
 public:
    Chunks(std::int64_t n, std::int64_t chunk) : n_(n), chunk_(std::max<std::int64_t>(chunk, 1)) {}

    std::int64_t count() const { return (n_ + chunk_ - 1) / chunk_; }

    // Calls body(begin, end) until no chunk is left. Any thread may get any chunk, so `body` must write only the results of
    // its chunk.
    template <typename Body>
    void process(const Body& body) {
        for (std::int64_t begin; (begin = next_.fetch_add(chunk_)) < n_;) body(begin, std::min(begin + chunk_, n_));
    }

 private:
    std::int64_t n_, chunk_;
    std::atomic<std::int64_t> next_{0};
};

template <typename Body>
void parallel_for(std::int64_t n, std::int64_t chunk, int threads, const Body& body) {
    Chunks chunks(n, chunk);
    run_on_threads(std::min<std::int64_t>(threads, chunks.count()), [&] { chunks.process(body); });
}

// `count` stages of [0, n) each. merge(stage) runs after the last body(stage, i) and before the first body of the next
// stage. A stage waits until the work of the stage before is done. It does not wait for threads, so a thread that starts
// late delays no other.
class Stages {
 public:
    Stages(int count, std::int64_t n) : n_(n), progress_(static_cast<std::size_t>(n > 0 ? count : 0)) {}

    // Works on the stages until all are done. Every participating thread calls it.
    template <typename Body, typename Merge>
    void process(const Body& body, const Merge& merge) {
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
