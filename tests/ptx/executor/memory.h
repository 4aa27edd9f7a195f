// Memory of a launch, and the checks of every access: bounds, initialization, and races.
//
// Two accesses race if they touch the same byte, one of them is a write that changes it or the other a read, and no barrier
// orders them. Each byte remembers its
// last write and its last two reads. Each remembered access has an event: the warp that made it, and how many barriers of
// each kind the warp had passed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ptx {

struct Fault : std::runtime_error {
    using std::runtime_error::runtime_error;
};

template <typename... Parts>
std::string text(const Parts&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
}

struct Event {
    std::uint32_t cluster = 0, rank = 0, warp = 0;
    std::uint32_t warp_barriers = 0, block_barriers = 0, cluster_barriers = 0;
    bool arrived = false;  // at the barrier of the cluster: only the next one orders the access before others
};

// An access: the number of its event, whether it is atomic, and the lane.
struct Access {
    std::uint32_t bits = 0;  // 0: no access
    Access() = default;
    Access(std::uint32_t event, bool atomic, std::uint32_t lane) : bits(event << 6 | atomic << 5 | lane) {}
    std::uint32_t event() const { return bits >> 6; }
    bool atomic() const { return bits >> 5 & 1; }
    std::uint32_t lane() const { return bits & 31; }
};

// The last accesses of each byte of a memory. The pages that no access touches take no memory.
class Shadow {
 public:
    struct Byte {
        Access write, read, other_read;  // `other_read`: by another warp than `read`
    };
    explicit Shadow(std::size_t bytes) : bytes_(static_cast<Byte*>(std::calloc(bytes + 1, sizeof(Byte)))) {
        if (!bytes_) throw std::bad_alloc();
    }
    Byte& operator[](std::size_t i) { return bytes_.get()[i]; }

 private:
    struct Free {
        void operator()(Byte* p) const { std::free(p); }
    };
    std::unique_ptr<Byte, Free> bytes_;
};

// The events of a launch.
class Events {
 public:
    Events() : events_(1) {}
    std::uint32_t add(const Event& event) {
        events_.push_back(event);
        if (events_.size() >> 26) throw Fault("the executor: too many barriers in one launch; use a smaller one");
        return static_cast<std::uint32_t>(events_.size() - 1);
    }

    // Returns the earlier write that the read races with, or none.
    Access read(Shadow::Byte& byte, Access now) const {
        const Access racing = races(byte.write, now) ? byte.write : Access{};
        if (byte.read.bits && !same_warp(byte.read, now)) byte.other_read = byte.read;
        byte.read = now;
        return racing;
    }
    struct Racing {
        Access write, read;
    };
    // Returns the earlier accesses that the write races with. `same`: The write does not change the byte. Two such writes in
    // any order give the same memory.
    Racing write(Shadow::Byte& byte, Access now, bool same) const {
        Racing racing;
        if (!same && races(byte.write, now)) racing.write = byte.write;
        for (const Access before : {byte.read, byte.other_read}) {
            if (races(before, now)) racing.read = before;
        }
        byte.write = now;
        return racing;
    }
    std::string describe(const char* access, const char* earlier, Access before) const {
        const Event& event = events_[before.event()];
        return text("race: the thread ", access, " a byte that thread ", event.warp * 32 + before.lane(), " of block ",
                    event.rank, " of cluster ", event.cluster, " ", earlier, ", and no barrier orders them");
    }

    bool same_warp(Access a, Access b) const {
        const Event &x = events_[a.event()], &y = events_[b.event()];
        return x.cluster == y.cluster && x.rank == y.rank && x.warp == y.warp;
    }

 private:
    bool races(Access before, Access now) const { return unordered(before, now) && !(before.atomic() && now.atomic()); }
    bool unordered(Access before, Access now) const {
        if (!before.bits) return false;
        const Event &x = events_[before.event()], &y = events_[now.event()];
        if (x.cluster != y.cluster) return true;
        if (x.rank != y.rank) return x.cluster_barriers + x.arrived >= y.cluster_barriers;
        if (x.warp != y.warp) return x.block_barriers + x.arrived >= y.block_barriers;
        return before.lane() != now.lane() && x.warp_barriers >= y.warp_barriers;
    }
    std::vector<Event> events_;
};

// The addresses and `Access::bits` of reads. Every run of a launch numbers its events alike.
using RacingReads = std::set<std::pair<std::uint64_t, std::uint32_t>>;

// Global memory: the allocations that the kernel may access. Bytes up to the next multiple of 16 may be read, because GPU
// allocations are whole multiples of more than that, but they are no data: they read as 0xff.
class GlobalMemory {
 public:
    struct Allocation {
        std::uint64_t begin, end;
        std::unique_ptr<Shadow> shadow;
        unsigned char* data() const { return reinterpret_cast<unsigned char*>(begin); }
    };
    GlobalMemory(const std::uint64_t* borders, std::size_t count) {
        for (std::size_t i = 0; i < count; ++i) allocations_.push_back({borders[2 * i], borders[2 * i + 1], nullptr});
        std::sort(allocations_.begin(), allocations_.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
    }

    // Returns a copy of all bytes, or writes them back.
    std::vector<unsigned char> save() const {
        std::vector<unsigned char> bytes;
        for (const Allocation& x : allocations_) bytes.insert(bytes.end(), x.data(), x.data() + (x.end - x.begin));
        return bytes;
    }
    void restore(const std::vector<unsigned char>& bytes) const {
        const unsigned char* from = bytes.data();
        for (const Allocation& x : allocations_) {
            std::memcpy(x.data(), from, x.end - x.begin);
            from += x.end - x.begin;
        }
    }

    Allocation& find(std::uint64_t address, std::size_t bytes, bool write) {
        if (last_ >= allocations_.size() || !holds(allocations_[last_], address, bytes, write)) {
            const auto after = std::upper_bound(allocations_.begin(), allocations_.end(), address,
                                                [](std::uint64_t at, const Allocation& x) { return at < x.begin; });
            const std::size_t index = static_cast<std::size_t>(after - allocations_.begin());
            if (index == 0 || !holds(allocations_[index - 1], address, bytes, write)) fail(address, bytes, write, index);
            last_ = index - 1;
        }
        Allocation& found = allocations_[last_];
        if (!found.shadow) found.shadow = std::make_unique<Shadow>(found.end - found.begin);
        return found;
    }

 private:
    static bool holds(const Allocation& x, std::uint64_t address, std::size_t bytes, bool write) {
        const std::uint64_t end = write ? x.end : (x.end + 15) / 16 * 16;
        return x.begin <= address && address < x.end && address + bytes <= end;
    }
    [[noreturn]] void fail(std::uint64_t address, std::size_t bytes, bool write, std::size_t index) const {
        std::string where = "before every allocation";
        if (index > 0) {
            const Allocation& x = allocations_[index - 1];
            where = text(address - x.begin, " bytes after the start of an allocation of ", x.end - x.begin, " bytes");
        }
        throw Fault(
            text("out of bounds: ", write ? "a write" : "a read", " of ", bytes, " bytes of global memory, ", where));
    }
    std::vector<Allocation> allocations_;
    std::size_t last_ = 0;
};

// The shared memory of a block.
struct SharedMemory {
    explicit SharedMemory(std::size_t bytes) : data(bytes, 0xff), written(bytes, 0), pending(bytes, 0), shadow(bytes) {}
    std::vector<unsigned char> data, written;
    std::vector<unsigned char> pending;  // targets of asynchronous copies that nobody has waited for
    Shadow shadow;
};

}  // namespace ptx
