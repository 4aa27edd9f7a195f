// The state of a launch while it runs, and what all operations need from it.
#pragma once

#include <bit>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "memory.h"
#include "numbers.h"
#include "program.h"
#include "warp.h"

namespace ptx {

struct Block {
    explicit Block(const Launch& launch) : shared(launch.shared_bytes), warps((launch.threads + lanes - 1) / lanes) {}
    std::uint32_t rank = 0, id[3]{};
    SharedMemory shared;
    std::vector<Warp> warps;
    bool done = false;
    std::int64_t remote_access = -1;  // cluster barriers that the last access by another block had passed
};

// A race between a read and a write of global memory.
struct ReadRace {
    std::string message;
    Report where;
};

class Execution {
 public:
    // `poisoned`: the reads of global memory that return 0xff.
    Execution(const Launch& launch, Report& report, const RacingReads& poisoned)
        : launch_(launch),
          report_(report),
          global_(launch.allocations, static_cast<std::size_t>(launch.allocation_count)),
          noise_{launch.noise},
          poisoned_(poisoned) {}

    RacingReads raced;
    std::unique_ptr<ReadRace> first_race;
    GlobalMemory& global() { return global_; }

 protected:
    // Says where a fault is, for the report.
    void locate(const Block& block, const Warp& warp, int lane) {
        report_.instruction = warp.paths.empty() ? -1 : warp.paths.back().at;
        std::copy(block.id, block.id + 3, report_.block);
        report_.thread = warp.index * lanes + static_cast<std::uint32_t>(lane);
    }

    template <typename F>
    void for_lanes(Mask mask, const F& f) {
        for (; mask; mask &= mask - 1) f(lane_ = std::countr_zero(mask));
    }

    static std::uint64_t bits_of(const std::uint32_t* r, int slot, int bits, int lane) {
        if (bits == 64) return get<std::uint64_t>(r + slot, lane);
        const std::uint32_t word = get<std::uint32_t>(r + slot, lane);
        return bits == 32 ? word : word & ((1u << bits) - 1);
    }
    static void set_bits(std::uint32_t* r, int slot, int bits, int lane, std::uint64_t value) {
        if (bits == 64) return set<std::uint64_t>(r + slot, lane, value);
        set<std::uint32_t>(r + slot, lane, static_cast<std::uint32_t>(value));
    }

    bool arrived() const { return warp_->arrivals > warp_->event.cluster_barriers; }
    void require_all_lanes(Mask mask) const {
        if (mask != warp_->alive) throw Fault("a barrier that only a part of the warp reaches");
    }
    void require_members(Mask mask, Mask members) const {
        const Mask wanted = members & warp_->alive;
        if (wanted != mask || members & ~warp_->alive & full_warp()) {
            throw Fault(
                text("a warp instruction for the lanes ", std::hex, members, ", but the lanes ", mask, " execute it"));
        }
    }
    Mask full_warp() const {
        const std::uint32_t count = std::min<std::uint32_t>(lanes, launch_.threads - warp_->index * lanes);
        return count == lanes ? ~Mask{0} : (Mask{1} << count) - 1;
    }

    const Launch& launch_;
    Report& report_;
    GlobalMemory global_;
    Events events_;
    Noise noise_;
    const RacingReads& poisoned_;
    std::vector<std::unique_ptr<Block>> blocks_;
    Block* block_ = nullptr;
    Warp* warp_ = nullptr;
    int lane_ = 0;
};

}  // namespace ptx
