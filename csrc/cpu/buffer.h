// Memory for logits or their gradient, cached from one call to the next.
//
// Fresh memory costs more than the kernel that fills it, because the system faults in and clears every page first. So the
// last mapping that was freed is cached for the next call. While it is unused, the system may reclaim its pages (MADV_FREE).
#pragma once

#include <atomic>
#include <cstddef>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sad::cpu {

class Mapping {
 public:
    explicit Mapping(std::size_t bytes) : bytes_((bytes + huge_page - 1) / huge_page * huge_page) {
#if defined(__linux__)
        data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data_ == MAP_FAILED) throw std::bad_alloc();
        madvise(data_, bytes_, MADV_HUGEPAGE);  // 512 times fewer faults; a failure is harmless
#else
        data_ = ::operator new(bytes_);
#endif
    }
    ~Mapping() {
#if defined(__linux__)
        munmap(data_, bytes_);
#else
        ::operator delete(data_);
#endif
    }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;

    void* data() const { return data_; }
    std::size_t bytes() const { return bytes_; }
    void allow_reclaim() const {
#if defined(__linux__) && defined(MADV_FREE)
        madvise(data_, bytes_, MADV_FREE);
#endif
    }

 private:
    static constexpr std::size_t huge_page = std::size_t{1} << 21;
    std::size_t bytes_;
    void* data_;
};

// Uninitialized memory of at least `bytes`.
class Buffer {
 public:
    explicit Buffer(std::size_t bytes) : size_(bytes), mapping_(cached().exchange(nullptr)) {
        // A mapping that is much too large is not used: the system could no longer reclaim it.
        if (mapping_ && (mapping_->bytes() < bytes || mapping_->bytes() / 2 > bytes)) {
            delete mapping_;
            mapping_ = nullptr;
        }
        if (!mapping_) mapping_ = new Mapping(bytes);
    }
    ~Buffer() {
        mapping_->allow_reclaim();
        delete cached().exchange(mapping_);
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    void* data() const { return mapping_->data(); }
    std::size_t size() const { return size_; }

    // Returns the cached mapping to the system.
    static void clear_cache() { delete cached().exchange(nullptr); }

 private:
    // One slot and no lock, so that a forked child can use it at any moment.
    static std::atomic<Mapping*>& cached() {
        static std::atomic<Mapping*> slot{nullptr};
        return slot;
    }
    std::size_t size_;
    Mapping* mapping_;
};

}  // namespace sad::cpu
