// Memory for logits or their gradient, kept from one call to the next.
//
// Fresh memory costs more than the kernel that fills it: every page is faulted in and cleared first. So the last block
// that was let go of is kept for the next call. While nobody uses it, the system may take its pages back (MADV_FREE).
#pragma once

#include <atomic>
#include <cstddef>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sad::cpu {

class Block {
 public:
    explicit Block(std::size_t bytes) : bytes_((bytes + huge_page - 1) / huge_page * huge_page) {
#if defined(__linux__)
        data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data_ == MAP_FAILED) throw std::bad_alloc();
        madvise(data_, bytes_, MADV_HUGEPAGE);  // 512 times fewer faults; advice, so failure is harmless
#else
        data_ = ::operator new(bytes_);
#endif
    }
    ~Block() {
#if defined(__linux__)
        munmap(data_, bytes_);
#else
        ::operator delete(data_);
#endif
    }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    void* data() const { return data_; }
    std::size_t bytes() const { return bytes_; }
    void lend_to_the_system() const {
#if defined(__linux__) && defined(MADV_FREE)
        madvise(data_, bytes_, MADV_FREE);
#endif
    }

 private:
    static constexpr std::size_t huge_page = std::size_t{1} << 21;
    std::size_t bytes_;
    void* data_;
};

// At least `bytes` of memory while it lives; what it holds at first is arbitrary.
class Buffer {
 public:
    explicit Buffer(std::size_t bytes) : size_(bytes), block_(kept().exchange(nullptr)) {
        // One that is much too large would only move memory from where the system can take it to where it cannot.
        if (block_ && (block_->bytes() < bytes || block_->bytes() / 2 > bytes)) {
            delete block_;
            block_ = nullptr;
        }
        if (!block_) block_ = new Block(bytes);
    }
    ~Buffer() {
        block_->lend_to_the_system();
        delete kept().exchange(block_);
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    void* data() const { return block_->data(); }
    std::size_t size() const { return size_; }

    // Gives what is kept for the next call back to the system.
    static void forget() { delete kept().exchange(nullptr); }

 private:
    // A single slot without a lock: safe in a child that was forked at any moment.
    static std::atomic<Block*>& kept() {
        static std::atomic<Block*> slot{nullptr};
        return slot;
    }
    std::size_t size_;
    Block* block_;
};

}  // namespace sad::cpu
