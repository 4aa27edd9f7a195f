// The fibers of the emulation, and the launches.
#include "emulation.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <exception>
#include <new>
#include <random>
#include <sstream>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

namespace sad::cuda::emulation {
namespace {

// What ThreadSanitizer must not see: the work of the emulation itself.
class Unwatched {
 public:
    Unwatched() {
#if defined(__SANITIZE_THREAD__)
        AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
        AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
    }
    ~Unwatched() {
#if defined(__SANITIZE_THREAD__)
        AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
        AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
    }
    Unwatched(const Unwatched&) = delete;
    Unwatched& operator=(const Unwatched&) = delete;
};

}  // namespace

// Something to switch to, with what the sanitizers want to know about it.
struct Context {
    ucontext_t registers{};
    void* stack = nullptr;
    std::size_t stack_bytes = 0;
    void* shadow = nullptr;  // its number for ThreadSanitizer
};

// ThreadSanitizer does not watch it: it reads the caller's variables from another thread.
__attribute__((no_sanitize("thread"))) void switch_context(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
    void* frames = nullptr;
    __sanitizer_start_switch_fiber(&frames, to.stack, to.stack_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(to.shadow, __tsan_switch_to_fiber_no_sync);
#endif
    swapcontext(&from.registers, &to.registers);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(frames, nullptr, nullptr);
#endif
}

// A CUDA thread. Its stack serves one launch after the other.
struct Thread : Context {
    Thread() {
        constexpr std::size_t guard = 64 << 10, bytes = 256 << 10;  // the guard catches a stack that grows too far
        mapped_ = mmap(nullptr, guard + bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapped_ == MAP_FAILED) throw std::bad_alloc();
        mprotect(mapped_, guard, PROT_NONE);
        mapped_bytes_ = guard + bytes;
        stack = static_cast<char*>(mapped_) + guard;
        stack_bytes = bytes;
#if defined(__SANITIZE_THREAD__)
        shadow = __tsan_create_fiber(0);
#endif
    }
    ~Thread() {
#if defined(__SANITIZE_ADDRESS__)
        ASAN_UNPOISON_MEMORY_REGION(stack, stack_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
        __tsan_destroy_fiber(shadow);
#endif
        munmap(mapped_, mapped_bytes_);
    }
    Thread(const Thread&) = delete;
    Thread& operator=(const Thread&) = delete;

    // Prepares a start at the beginning of `entry`.
    void restart(void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
        ASAN_UNPOISON_MEMORY_REGION(stack, stack_bytes);  // the last `entry` has not returned
#endif
        getcontext(&registers);
        registers.uc_stack.ss_sp = stack;
        registers.uc_stack.ss_size = stack_bytes;
        registers.uc_link = nullptr;
        makecontext(&registers, entry, 0);
        registers.uc_stack.ss_size = 0;  // or AddressSanitizer would forget the borders of variables at every switch
    }

    Place place;

 private:
    void* mapped_;
    std::size_t mapped_bytes_;
};

// A launch, on the thread that calls it.
struct Launch {
    Modes modes;
    const std::function<void()>* kernel = nullptr;
    std::minstd_rand random;
    Context caller;
    std::deque<Thread*> ready;
    Thread* running = nullptr;
    unsigned unfinished = 0;
    std::exception_ptr fault;
    Mark start{}, end{};
};

thread_local Launch* launched = nullptr;
thread_local std::vector<std::unique_ptr<Thread>> team;  // threads of earlier launches

namespace {

// Returns where a thread that waits or has ended switches to: a thread that is ready, or the caller if there is none.
Context& next_context() {
    Launch& launch = *launched;
    if (launch.ready.empty() || launch.fault) return launch.caller;
    if (launch.modes.order) std::swap(launch.ready.front(), launch.ready[launch.random() % launch.ready.size()]);
    launch.running = launch.ready.front();
    launch.ready.pop_front();
    return *launch.running;
}

// The first function on the stack of a thread.
void run_thread() {
#if defined(__SANITIZE_ADDRESS__)
    Context& caller = launched->caller;
    const void* bottom = nullptr;
    std::size_t bytes = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (!caller.stack)
        caller.stack = const_cast<void*>(bottom), caller.stack_bytes = bytes;  // the first switch of the launch
#endif
    acquire(launched->start);
    try {
        (*launched->kernel)();
        here().mine->leave();
    } catch (...) {
        launched->fault = std::current_exception();
    }
    release(launched->end);
    Context *self, *next;
    {
        const Unwatched unwatched;
        --launched->unfinished;
        self = launched->running;
        next = &next_context();
    }
    switch_context(*self, *next);
}

void run_cluster(Launch& launch, dim3 first_block, dim3 grid, unsigned threads, std::size_t shared_bytes,
                 unsigned cluster_size) {
    Cluster cluster(cluster_size, threads, shared_bytes);
    for (unsigned i = 0; i < threads * cluster_size; ++i) {
        const unsigned rank = i / threads, t = i % threads;
        Block& mine = *cluster.blocks[rank];
        team[i]->place = {dim3{t}, {first_block.x + rank, first_block.y, 0}, dim3{threads}, grid, rank, 0, &cluster,
                          &mine,   mine.warps[t / warp_size].get(),          {{}}};
        team[i]->restart(&run_thread);
        launch.ready.push_back(team[i].get());
    }
    launch.unfinished = threads * cluster_size;
    switch_context(launch.caller, next_context());
    if (!launch.fault && launch.unfinished == 0) return;
    team.clear();  // the threads wait for ever
    if (launch.fault) std::rethrow_exception(launch.fault);
    throw Fault("the emulated kernel: " + std::to_string(launch.unfinished) + " threads of block (" +
                std::to_string(first_block.x) + ", " + std::to_string(first_block.y) +
                ") and its cluster wait in a barrier that the other threads do not reach");
}

}  // namespace

Modes Modes::of_environment() {
    Modes modes;
    const char* const words = std::getenv("SAD_EMULATION");
    std::istringstream stream(words ? words : "");
    for (std::string word; stream >> word;) {
        const std::size_t sign = std::min(word.find('='), word.size());
        const std::string name = word.substr(0, sign), value = word.substr(std::min(sign + 1, word.size()));
        const std::uint64_t number = std::strtoull(value.c_str(), nullptr, 10);
        if (word == "eager-copies") {
            modes.eager_copies = true;
        } else if (name == "noise" && number > 0) {
            modes.noise = number;
        } else if (name == "order" && number > 0) {
            modes.order = number;
        } else if (name == "threads" && number >= warp_size && number <= 1024 && number % warp_size == 0) {
            modes.threads = static_cast<int>(number);
        } else if (name == "drop-barrier" && !value.empty()) {
            modes.dropped = value;
        } else {
            throw std::invalid_argument(
                "SAD_EMULATION: expected eager-copies, noise=SEED, order=SEED, threads=NUMBER (a multiple of 32 up to 1024) "
                "or drop-barrier=FUNCTION, got " +
                word);
        }
    }
    return modes;
}

// After the last thread, the shared memory is another block's.
void Block::leave() {
    release(end);
    if (--running > 0) return;
    acquire(end);
    fill_with_nan();
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(shared.get(), bytes);
#endif
}

Place& here() { return launched->running->place; }
const Modes& modes() { return launched->modes; }

void wait(Barrier& barrier) {
    Context *self, *next;
    Mark* mark;
    {
        const Unwatched unwatched;
        self = launched->running;
        mark = &barrier.marks[barrier.round % 2];
        release(*mark);
        barrier.waiting.push_back(launched->running);
        if (barrier.waiting.size() == barrier.expected) {
            ++barrier.round;
            launched->ready.insert(launched->ready.end(), barrier.waiting.begin(), barrier.waiting.end());
            barrier.waiting.clear();
        }
        next = &next_context();
    }
    if (self != next) switch_context(*self, *next);
    acquire(*mark);
}

void run(dim3 grid, unsigned threads, std::size_t shared_bytes, unsigned cluster_size, const std::function<void()>& kernel) {
    const Unwatched unwatched;
    Launch launch;
    launch.modes = Modes::of_environment();
    launch.kernel = &kernel;
    launch.random.seed(static_cast<unsigned>(launch.modes.order));
#if defined(__SANITIZE_THREAD__)
    launch.caller.shadow = __tsan_get_current_fiber();
#endif
    while (team.size() < threads * cluster_size) team.push_back(std::make_unique<Thread>());
    std::vector<dim3> clusters;
    for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; x += cluster_size) clusters.push_back({x, y, 0});
    }
    if (launch.modes.order) std::shuffle(clusters.begin(), clusters.end(), launch.random);
    launched = &launch;
    release(launch.start);
    for (const dim3& first : clusters) run_cluster(launch, first, grid, threads, shared_bytes, cluster_size);
    acquire(launch.end);
}

}  // namespace sad::cuda::emulation
