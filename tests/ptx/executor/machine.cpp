// Runs a launch: the clusters one after the other, and the warps of a cluster in turns, each until it waits or ends.
#include <bit>
#include <numeric>
#include <random>
#include <utility>

#include "memory.h"
#include "numbers.h"
#include "operations.h"  // the numbers of the operations, made from the table
#include "program.h"
#include "warp.h"

namespace ptx {
namespace {

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

class Machine {
 public:
    // `poisoned`: the reads of global memory that return 0xff.
    Machine(const Launch& launch, Report& report, const RacingReads& poisoned)
        : launch_(launch),
          report_(report),
          global_(launch.allocations, static_cast<std::size_t>(launch.allocation_count)),
          noise_{launch.noise},
          poisoned_(poisoned) {}

    RacingReads raced;
    std::unique_ptr<ReadRace> first_race;
    GlobalMemory& global() { return global_; }

    void run() {
        const std::uint64_t clusters = std::uint64_t{launch_.grid[0]} / launch_.cluster * launch_.grid[1] * launch_.grid[2];
        std::vector<std::uint64_t> order(clusters);
        std::iota(order.begin(), order.end(), 0);
        if (launch_.order == 1) std::reverse(order.begin(), order.end());
        if (launch_.order > 1) std::shuffle(order.begin(), order.end(), std::mt19937_64(launch_.order));
        for (const std::uint64_t cluster : order) run_cluster(cluster);
    }

 private:
    void run_cluster(std::uint64_t index) {
        blocks_.clear();
        const std::uint64_t per_row = launch_.grid[0] / launch_.cluster;
        for (std::uint32_t rank = 0; rank < launch_.cluster; ++rank) {
            Block& block = *blocks_.emplace_back(std::make_unique<Block>(launch_));
            block.rank = rank;
            block.id[0] = static_cast<std::uint32_t>(index % per_row) * launch_.cluster + rank;
            block.id[1] = static_cast<std::uint32_t>(index / per_row % launch_.grid[1]);
            block.id[2] = static_cast<std::uint32_t>(index / per_row / launch_.grid[1]);
            for (std::uint32_t w = 0; w < block.warps.size(); ++w) start(block, block.warps[w], w, index);
        }
        while (run_ready_warps()) {
            for (const auto& block : blocks_) release_block(*block);
            release_cluster();
        }
        for (const auto& block : blocks_) {
            for (const Warp& warp : block->warps) {
                if (warp.state == State::done) continue;
                locate(*block, warp, 0);
                throw Fault("deadlock: the warp waits in a barrier that other warps do not reach");
            }
        }
    }

    // Returns whether a warp has run.
    bool run_ready_warps() {
        bool any = false;
        for (const auto& block : blocks_) {
            for (Warp& warp : block->warps) {
                if (warp.state != State::runs) continue;
                any = true;
                run_warp(*block, warp);
            }
        }
        return any;
    }

    void start(Block& block, Warp& warp, std::uint32_t index, std::uint64_t cluster) {
        const std::uint32_t count = std::min<std::uint32_t>(lanes, launch_.threads - index * lanes);
        warp.index = index;
        warp.alive = count == lanes ? ~Mask{0} : (Mask{1} << count) - 1;
        warp.registers.assign(static_cast<std::size_t>(launch_.register_words), 0xffffffffu);
        warp.local.assign(std::size_t{launch_.local_bytes} * lanes, 0xff);
        warp.paths = {{0, warp.alive, launch_.instruction_count}};
        for (auto& groups : warp.copies) groups.resize(1);
        warp.event = {static_cast<std::uint32_t>(cluster), block.rank, index};
        warp.event_number = events_.add(warp.event);
        for (std::int64_t i = 0; i < launch_.initial_count; ++i) {
            const Initial& initial = launch_.initial[i];
            std::uint32_t* const slot = warp.registers.data() + initial.slot;
            for (int lane = 0; lane < lanes; ++lane) {
                std::uint64_t value = initial.value;
                if (initial.kind == special_register) value = special(block, warp, lane, initial.special);
                if (initial.kind == shared_address) value += std::uint64_t{block.rank + 1} << rank_shift;
                if (initial.words == 1) {
                    set<bool>(slot, lane, value != 0);
                } else if (initial.words == 64) {
                    set<std::uint64_t>(slot, lane, value);
                } else {
                    set<std::uint32_t>(slot, lane, static_cast<std::uint32_t>(value));
                }
            }
        }
    }

    std::uint64_t special(const Block& block, const Warp& warp, int lane, int which) const {
        const std::uint32_t thread = warp.index * lanes + static_cast<std::uint32_t>(lane);
        switch (which) {
            case SPECIAL_tid_x:
                return thread;
            case SPECIAL_ntid_x:
                return launch_.threads;
            case SPECIAL_ctaid_x:
            case SPECIAL_ctaid_y:
            case SPECIAL_ctaid_z:
                return block.id[which - SPECIAL_ctaid_x];
            case SPECIAL_nctaid_x:
            case SPECIAL_nctaid_y:
            case SPECIAL_nctaid_z:
                return launch_.grid[which - SPECIAL_nctaid_x];
            case SPECIAL_laneid:
                return static_cast<std::uint32_t>(lane);
            case SPECIAL_warpid:
                return warp.index;
            case SPECIAL_cluster_ctarank:
            case SPECIAL_cluster_ctaid_x:
                return block.rank;
            case SPECIAL_cluster_nctarank:
            case SPECIAL_cluster_nctaid_x:
                return launch_.cluster;
            case SPECIAL_clusterid_x:
                return block.id[0] / launch_.cluster;
            case SPECIAL_nclusterid_x:
                return launch_.grid[0] / launch_.cluster;
            case SPECIAL_lanemask_lt:
                return (1u << lane) - 1;
            case SPECIAL_lanemask_le:
                return (2u << lane) - 1;
            case SPECIAL_lanemask_eq:
                return 1u << lane;
            case SPECIAL_one:
                return 1;
            default:
                return 0;
        }
    }

    // Says where a fault is, for the report.
    void locate(const Block& block, const Warp& warp, int lane) {
        report_.instruction = warp.paths.empty() ? -1 : warp.paths.back().at;
        std::copy(block.id, block.id + 3, report_.block);
        report_.thread = warp.index * lanes + static_cast<std::uint32_t>(lane);
    }

    void next_event(Warp& warp) {
        warp.event.arrived = warp.arrivals > warp.event.cluster_barriers;
        warp.event_number = events_.add(warp.event);
    }

    void release_block(Block& block) {
        std::size_t waiting = 0, done = 0;
        for (const Warp& warp : block.warps) {
            waiting += warp.state == State::waits_in_block;
            done += warp.state == State::done;
        }
        if (done == block.warps.size()) return end(block);
        if (waiting == 0 || waiting + done < block.warps.size()) return;
        for (Warp& warp : block.warps) {
            if (warp.state != State::waits_in_block) continue;
            warp.state = State::runs;
            ++warp.event.warp_barriers, ++warp.event.block_barriers;
            next_event(warp);
        }
    }

    void end(Block& block) {
        if (block.done) return;
        block.done = true;
        const std::int64_t passed = block.warps[0].event.cluster_barriers;
        if (block.remote_access >= passed) {
            locate(block, block.warps[0], 0);
            throw Fault(
                "another block of the cluster accesses the shared memory of a block that may have ended: no barrier of "
                "the cluster comes after the access");
        }
    }

    void release_cluster() {
        std::uint32_t arrivals = ~std::uint32_t{0};  // of the warp that has the fewest
        for (const auto& block : blocks_) {
            for (const Warp& warp : block->warps) {
                if (warp.state != State::done) arrivals = std::min(arrivals, warp.arrivals);
            }
        }
        for (const auto& block : blocks_) {
            for (Warp& warp : block->warps) {
                if (warp.state != State::waits_in_cluster || arrivals <= warp.event.cluster_barriers) continue;
                warp.state = State::runs;
                ++warp.event.warp_barriers, ++warp.event.block_barriers, ++warp.event.cluster_barriers;
                next_event(warp);
            }
        }
    }

    void run_warp(Block& block, Warp& warp) {
        block_ = &block;
        warp_ = &warp;
        try {
            while (warp.state == State::runs) step();
        } catch (const Fault&) {
            locate(block, warp, lane_);
            throw;
        }
    }

    void step() {
        Warp& warp = *warp_;
        while (!warp.paths.empty() && (!warp.paths.back().mask || warp.paths.back().at == warp.paths.back().join)) {
            if (warp.paths.size() == 1) end_lanes(warp.paths.back().mask);  // after the last instruction
            warp.paths.pop_back();
        }
        if (warp.paths.empty()) {
            warp.state = State::done;
            return;
        }
        Path& path = warp.paths.back();
        const Instruction& instruction = launch_.instructions[path.at];
        Mask mask = path.mask;
        if (instruction.guard != no_slot) {
            const Mask bits = warp.registers[static_cast<std::size_t>(instruction.guard)];
            mask &= instruction.negated ? ~bits : bits;
        }
        if (++warp.steps > launch_.most_steps) throw Fault("the kernel does not end");
        ++report_.steps;
        lane_ = mask ? std::countr_zero(mask) : 0;
        if (instruction.op == OP_bra) return branch(path, instruction, mask);
        if (instruction.op == OP_exit) {
            ++path.at;
            return end_lanes(mask);
        }
        if (mask) execute(instruction, mask, warp.registers.data());
        ++warp.paths.back().at;
    }

    void branch(Path& path, const Instruction& instruction, Mask taken) {
        const std::int64_t target = instruction.args[0], join = instruction.args[1];
        if (taken == path.mask) {
            path.at = target;
        } else if (!taken) {
            ++path.at;
        } else {
            const Path other{path.at + 1, path.mask & ~taken, join}, jump{target, taken, join};
            // Where this path itself meets others there is one below it with all of its lanes.
            if (join == path.join && warp_->paths.size() > 1) {
                warp_->paths.pop_back();
            } else {
                path.at = join;
            }
            if (other.at != join) warp_->paths.push_back(other);
            if (jump.at != join) warp_->paths.push_back(jump);
        }
    }

    void end_lanes(Mask mask) {
        for (Path& path : warp_->paths) path.mask &= ~mask;
        warp_->alive &= ~mask;
    }

    void execute(const Instruction& instruction, Mask mask, std::uint32_t* r) {
        [[maybe_unused]] const Noise& noise = noise_;
        switch (instruction.op) {
            case OP_ld:
                return for_lanes(mask, [&](int lane) { load(instruction, lane, r); });
            case OP_st:
                return for_lanes(mask, [&](int lane) { store(instruction, lane, r); });
            case OP_atom:
                return for_lanes(mask, [&](int lane) { atomic(instruction, lane, r); });
            case OP_cp_async:
                return for_lanes(mask, [&](int lane) { start_copy(instruction, lane, r); });
            case OP_cp_async_commit_group:
                return for_lanes(mask, [&](int lane) { copies(lane).emplace_back(); });
            case OP_cp_async_wait_group:
                return for_lanes(mask, [&](int lane) {
                    wait_for_copies(lane, get<std::uint32_t>(r + instruction.args[0], lane), false);
                });
            case OP_cp_async_wait_all:
                return for_lanes(mask, [&](int lane) { wait_for_copies(lane, 0, true); });
            case OP_bar_sync:
                require_all_lanes(mask);
                warp_->state = State::waits_in_block;
                return;
            case OP_bar_warp_sync:
                require_members(mask, get<std::uint32_t>(r + instruction.args[0], lane_));
                ++warp_->event.warp_barriers;
                return next_event(*warp_);
            case OP_barrier_cluster_arrive:
                require_all_lanes(mask);
                if (arrived()) throw Fault("the warp arrives twice at a barrier of the cluster");
                ++warp_->arrivals;
                return next_event(*warp_);
            case OP_barrier_cluster_wait:
                require_all_lanes(mask);
                if (!arrived()) throw Fault("the warp waits for a barrier of the cluster without an arrival");
                warp_->state = State::waits_in_cluster;
                return;
            case OP_matrix:
                return matrices(instruction, mask, r);
            case OP_shfl:
                return shuffle(instruction, mask, r);
            case OP_vote:
                return vote(instruction, mask, r);
            case OP_redux:
                return reduce(instruction, mask, r);
            case OP_trap:
                throw Fault("trap: the kernel stopped itself");
            case OP_pack:  // one register from parts of args[2] bits
                return for_lanes(mask, [&](int lane) {
                    std::uint64_t value = 0;
                    for (int i = 0; i < instruction.args[3]; ++i) {
                        value |= bits_of(r, instruction.args[4 + i], instruction.args[2], lane) << instruction.args[2] * i;
                    }
                    set_bits(r, instruction.args[0], instruction.args[1], lane, value);
                });
            case OP_unpack:  // parts of args[2] bits from one register
                return for_lanes(mask, [&](int lane) {
                    const int part = instruction.args[2];
                    const std::uint64_t value = bits_of(r, instruction.args[0], instruction.args[1], lane);
                    for (int i = 0; i < instruction.args[3]; ++i) {
                        if (instruction.args[4 + i] == no_slot) continue;
                        const std::uint64_t ones = part == 64 ? ~0ull : (1ull << part) - 1;
                        set_bits(r, instruction.args[4 + i], part, lane, value >> part * i & ones);
                    }
                });
            case OP_nop:
                return;
#include "operations.inc"
        }
        throw Fault(text("the executor: operation ", instruction.op, " has no code"));
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

    // --- memory: args are the slots of up to 4 elements, then address slot, address bits, offset, space, element bytes,
    // elements, register bits, signed

    struct Operand {
        std::uint64_t address;
        Space space;
        int bytes, elements, register_bits;
        bool is_signed;
    };
    Operand operand_of(const Instruction& instruction, int lane, const std::uint32_t* r) const {
        const std::int32_t* const a = instruction.args + 4;
        std::uint64_t address = a[1] == 64 ? get<std::uint64_t>(r + a[0], lane) : get<std::uint32_t>(r + a[0], lane);
        address += static_cast<std::uint64_t>(std::int64_t{a[2]});
        Space space = static_cast<Space>(a[3]);
        if (a[1] == 32) address &= 0xffffffffu;
        if (space == generic_space) {
            space = static_cast<Space>(address >> window_shift);
            address &= (1ull << window_shift) - 1;
            if (space == shared_space) space = shared_cluster_space;
        }
        const Operand operand{address, space, a[4], a[5], a[6], a[7] != 0};
        const int bytes = operand.bytes * operand.elements;
        if (address % static_cast<std::uint64_t>(bytes)) {
            throw Fault(text("misaligned: an access of ", bytes, " bytes at an address that is ",
                             address % static_cast<std::uint64_t>(bytes), " bytes after a multiple of ", bytes));
        }
        return operand;
    }

    Access access(int lane, bool atomic = false) const {
        return {warp_->event_number, atomic, static_cast<std::uint32_t>(lane)};
    }

    // The block and the offset of a shared address.
    std::pair<Block*, std::uint32_t> shared_at(std::uint64_t address, int bytes, bool own) {
        const std::uint64_t rank = (address >> rank_shift) - 1, offset = address & ((1u << rank_shift) - 1);
        if (rank >= blocks_.size() || offset + static_cast<std::uint64_t>(bytes) > launch_.shared_bytes) {
            throw Fault(text("out of bounds: ", bytes, " bytes at offset ", offset, " of the shared memory of rank ",
                             static_cast<std::int64_t>(rank), ", which has ", launch_.shared_bytes, " bytes per block"));
        }
        Block& block = *blocks_[rank];
        if (&block == block_) return {&block, static_cast<std::uint32_t>(offset)};
        if (own) throw Fault("an access to the shared memory of another block with an instruction for the own block");
        if (block.done) throw Fault("an access to the shared memory of a block that has ended");
        if (warp_->event.cluster_barriers == 0) {
            throw Fault(
                "an access to the shared memory of a block that may not have started: no barrier of the cluster comes "
                "before it");
        }
        block.remote_access =
            std::max(block.remote_access, std::int64_t{warp_->event.cluster_barriers} + warp_->event.arrived);
        return {&block, static_cast<std::uint32_t>(offset)};
    }

    void read_shared(Block& block, std::uint32_t offset, int bytes, Access now, unsigned char* to) {
        SharedMemory& memory = block.shared;
        for (int i = 0; i < bytes; ++i) {
            const std::uint32_t at = offset + static_cast<std::uint32_t>(i);
            if (memory.pending[at]) throw Fault("a read of shared memory before the asynchronous copy to it is waited for");
            if (!memory.written[at]) throw Fault(text("a read of shared memory that nothing has written, at offset ", at));
            const Access racing = events_.read(memory.shadow[at], now);
            if (racing.bits) throw Fault(events_.describe("reads", "wrote", racing));
        }
        std::memcpy(to, memory.data.data() + offset, static_cast<std::size_t>(bytes));
    }
    void write_shared(Block& block, std::uint32_t offset, int bytes, Access now, const unsigned char* from) {
        SharedMemory& memory = block.shared;
        for (int i = 0; i < bytes; ++i) {
            const std::uint32_t at = offset + static_cast<std::uint32_t>(i);
            if (memory.pending[at]) throw Fault("a write to shared memory during an asynchronous copy to it");
            require_ordered(events_.write(memory.shadow[at], now, memory.data[at] == from[i]));
            memory.written[at] = 1;
        }
        std::memcpy(memory.data.data() + offset, from, static_cast<std::size_t>(bytes));
    }
    void read_global(std::uint64_t address, int bytes, Access now, unsigned char* to) {
        GlobalMemory::Allocation& memory = global_.find(address, static_cast<std::size_t>(bytes), false);
        for (int i = 0; i < bytes; ++i) {
            const std::uint64_t at = address + static_cast<std::uint64_t>(i);
            if (at >= memory.end) {
                to[i] = 0xff;
                continue;
            }
            Shadow::Byte& byte = (*memory.shadow)[at - memory.begin];
            const Access racing = events_.read(byte, now);
            if (racing.bits) note_race(at, now, events_.describe("reads", "wrote", racing));
            const bool poisoned = !poisoned_.empty() && poisoned_.count({at, now.bits});
            to[i] = poisoned ? 0xff : *reinterpret_cast<const unsigned char*>(at);
        }
    }
    void write_global(std::uint64_t address, int bytes, Access now, const unsigned char* from) {
        GlobalMemory::Allocation& memory = global_.find(address, static_cast<std::size_t>(bytes), true);
        for (int i = 0; i < bytes; ++i) {
            const std::uint64_t at = address + static_cast<std::uint64_t>(i);
            const bool same = *reinterpret_cast<const unsigned char*>(at) == from[i];
            const Events::Racing racing = events_.write((*memory.shadow)[at - memory.begin], now, same);
            if (racing.write.bits) throw Fault(events_.describe("writes", "wrote", racing.write));
            if (racing.read.bits) {
                note_race(at, racing.read, events_.describe("writes", "read", racing.read));
            }
        }
        std::memcpy(reinterpret_cast<void*>(address), from, static_cast<std::size_t>(bytes));
    }
    void note_race(std::uint64_t address, Access read, const std::string& message) {
        raced.insert({address, read.bits});
        if (first_race) return;
        locate(*block_, *warp_, lane_);
        first_race = std::make_unique<ReadRace>(ReadRace{message, report_});
    }
    void require_ordered(const Events::Racing& racing) const {
        if (racing.write.bits) throw Fault(events_.describe("writes", "wrote", racing.write));
        if (racing.read.bits) throw Fault(events_.describe("writes", "read", racing.read));
    }
    unsigned char* local_at(std::uint64_t address, int bytes, int lane) {
        if (address + static_cast<std::uint64_t>(bytes) > launch_.local_bytes) {
            throw Fault(text("out of bounds: ", bytes, " bytes at offset ", address, " of ", launch_.local_bytes,
                             " bytes of local memory"));
        }
        return warp_->local.data() + static_cast<std::size_t>(lane) * launch_.local_bytes + address;
    }

    void read(const Operand& from, int lane, Access now, unsigned char* to) {
        const int bytes = from.bytes * from.elements;
        switch (from.space) {
            case global_space:
                return read_global(from.address, bytes, now, to);
            case shared_space:
            case shared_cluster_space: {
                const auto [block, offset] = shared_at(from.address, bytes, from.space == shared_space);
                return read_shared(*block, offset, bytes, now, to);
            }
            case local_space:
                std::memcpy(to, local_at(from.address, bytes, lane), static_cast<std::size_t>(bytes));
                return;
            case param_space:
                if (from.address + static_cast<std::uint64_t>(bytes) > launch_.parameter_bytes) {
                    throw Fault(text("out of bounds: ", bytes, " bytes at offset ", from.address, " of the parameters"));
                }
                std::memcpy(to, launch_.parameters + from.address, static_cast<std::size_t>(bytes));
                return;
            default:
                throw Fault("a read at an address of no memory");
        }
    }
    void write(const Operand& to, int lane, Access now, const unsigned char* from) {
        const int bytes = to.bytes * to.elements;
        switch (to.space) {
            case global_space:
                return write_global(to.address, bytes, now, from);
            case shared_space:
            case shared_cluster_space: {
                const auto [block, offset] = shared_at(to.address, bytes, to.space == shared_space);
                return write_shared(*block, offset, bytes, now, from);
            }
            case local_space:
                std::memcpy(local_at(to.address, bytes, lane), from, static_cast<std::size_t>(bytes));
                return;
            default:
                throw Fault("a write at an address of no memory that can be written");
        }
    }

    void load(const Instruction& instruction, int lane, std::uint32_t* r) {
        const Operand from = operand_of(instruction, lane, r);
        unsigned char bytes[32];
        read(from, lane, access(lane), bytes);
        for (int i = 0; i < from.elements; ++i) {
            std::uint64_t value = 0;
            std::memcpy(&value, bytes + i * from.bytes, static_cast<std::size_t>(from.bytes));
            if (from.is_signed && from.bytes < 8) {
                const int unused = 64 - 8 * from.bytes;
                value = static_cast<std::uint64_t>(static_cast<std::int64_t>(value << unused) >> unused);
            }
            if (instruction.args[i] != no_slot) set_bits(r, instruction.args[i], from.register_bits, lane, value);
        }
    }
    void store(const Instruction& instruction, int lane, std::uint32_t* r) {
        const Operand to = operand_of(instruction, lane, r);
        unsigned char bytes[32];
        for (int i = 0; i < to.elements; ++i) {
            const std::uint64_t value = bits_of(r, instruction.args[i], to.register_bits, lane);
            std::memcpy(bytes + i * to.bytes, &value, static_cast<std::size_t>(to.bytes));
        }
        write(to, lane, access(lane), bytes);
    }

    // args: the slots of the result (or none), the operand, and a second operand (or none), then as above
    void atomic(const Instruction& instruction, int lane, std::uint32_t* r) {
        const Operand at = operand_of(instruction, lane, r);
        const Access now = access(lane, true);
        unsigned char bytes[8]{};
        read(at, lane, now, bytes);
        std::uint64_t old = 0;
        std::memcpy(&old, bytes, static_cast<std::size_t>(at.bytes));
        const std::uint64_t b = bits_of(r, instruction.args[1], at.register_bits, lane);
        std::uint64_t value = 0;
        switch (instruction.args[12]) {
            case ATOM_add:
                value = old + b;
                break;
            case ATOM_or:
                value = old | b;
                break;
            case ATOM_and:
                value = old & b;
                break;
            case ATOM_xor:
                value = old ^ b;
                break;
            case ATOM_exch:
                value = b;
                break;
            case ATOM_min:
                value = std::min(old, b);
                break;
            case ATOM_max:
                value = std::max(old, b);
                break;
            case ATOM_cas:
                value = old == b ? bits_of(r, instruction.args[2], at.register_bits, lane) : old;
                break;
            default:
                throw Fault("the executor: an atomic operation without code");
        }
        std::memcpy(bytes, &value, sizeof bytes);
        write(at, lane, now, bytes);
        if (instruction.args[0] != no_slot) set_bits(r, instruction.args[0], at.register_bits, lane, old);
    }

    // ldmatrix and stmatrix: 8 x 8 matrices of 16-bit numbers. Lane 8 i + j has the address of row j of matrix i. Lane l has
    // the numbers 2 (l % 4) and 2 (l % 4) + 1 of row l / 4, or of column l / 4 if transposed. args: the registers of up to
    // four matrices, address slot, address bits, offset, space, number of matrices, transposed, whether it stores
    void matrices(const Instruction& instruction, Mask mask, std::uint32_t* r) {
        const std::int32_t* const a = instruction.args;
        if (mask != ~Mask{0}) throw Fault("a matrix instruction that only a part of the warp executes");
        for (int i = 0; i < a[8]; ++i) {
            std::uint16_t matrix[8][8];
            if (a[10])
                visit_matrix(matrix, a[9] != 0, [&](int lane, int half, std::uint16_t& x) {
                    x = static_cast<std::uint16_t>(get<std::uint32_t>(r + a[i], lane) >> 16 * half);
                });
            for (int row = 0; row < 8; ++row) {
                const int lane = lane_ = 8 * i + row;
                const std::uint64_t address = address_at(a + 4, lane, r);
                if (address % 16) throw Fault("misaligned: a row of a matrix of 16 bytes");
                const auto [block, offset] = shared_at(address, 16, a[7] == shared_space);
                unsigned char* const bytes = reinterpret_cast<unsigned char*>(matrix[row]);
                if (a[10]) {
                    write_shared(*block, offset, 16, access(lane), bytes);
                } else {
                    read_shared(*block, offset, 16, access(lane), bytes);
                }
            }
            if (a[10]) continue;
            for_lanes(mask, [&](int lane) { set<std::uint32_t>(r + a[i], lane, 0); });
            visit_matrix(matrix, a[9] != 0, [&](int lane, int half, std::uint16_t& x) {
                const std::uint32_t before = get<std::uint32_t>(r + a[i], lane);
                set<std::uint32_t>(r + a[i], lane, before | std::uint32_t{x} << 16 * half);
            });
        }
    }
    // Calls f with each lane, each half of its register, and the number of the matrix that belongs there.
    template <typename F>
    static void visit_matrix(std::uint16_t (&matrix)[8][8], bool transposed, const F& f) {
        for (int lane = 0; lane < lanes; ++lane) {
            for (int half = 0; half < 2; ++half) {
                const int x = lane / 4, y = 2 * (lane % 4) + half;
                f(lane, half, transposed ? matrix[y][x] : matrix[x][y]);
            }
        }
    }

    // --- asynchronous copies: args are the slot of the target, its bits, its offset, slot, bits and offset of the source,
    // and the bytes

    std::vector<std::vector<Copy>>& copies(int lane) { return warp_->copies[static_cast<std::size_t>(lane)]; }

    static std::uint64_t address_at(const std::int32_t* a, int lane, const std::uint32_t* r) {
        const std::uint64_t base = a[1] == 64 ? get<std::uint64_t>(r + a[0], lane) : get<std::uint32_t>(r + a[0], lane);
        return base + static_cast<std::uint64_t>(std::int64_t{a[2]});
    }

    void start_copy(const Instruction& instruction, int lane, const std::uint32_t* r) {
        const std::uint64_t to = address_at(instruction.args, lane, r), from = address_at(instruction.args + 3, lane, r);
        const auto bytes = static_cast<std::uint64_t>(instruction.args[6]);
        if (to % bytes || from % bytes) throw Fault(text("misaligned: an asynchronous copy of ", bytes, " bytes"));
        const auto [block, offset] = shared_at(to, static_cast<int>(bytes), true);
        Copy copy{from, offset, static_cast<std::uint32_t>(bytes), {}};
        read_global(from, static_cast<int>(bytes), access(lane), copy.source.data());
        SharedMemory& memory = block->shared;
        for (std::uint64_t i = 0; i < bytes; ++i) {
            if (memory.pending[offset + i]) throw Fault("two asynchronous copies to the same shared memory");
            require_ordered(events_.write(memory.shadow[offset + i], access(lane), false));
            memory.pending[offset + i] = 1;
        }
        copies(lane).back().push_back(copy);
    }

    void wait_for_copies(int lane, std::size_t left, bool uncommitted) {
        auto& groups = copies(lane);
        if (uncommitted) groups.emplace_back();
        while (groups.size() > left + 1) {
            for (const Copy& copy : groups.front()) {
                unsigned char bytes[16];
                read_global(copy.from, static_cast<int>(copy.bytes), access(lane), bytes);
                if (std::memcmp(bytes, copy.source.data(), copy.bytes)) {
                    throw Fault("the source of an asynchronous copy changes before the copy is waited for");
                }
                for (std::uint32_t i = 0; i < copy.bytes; ++i) block_->shared.pending[copy.to + i] = 0;
                write_shared(*block_, copy.to, static_cast<int>(copy.bytes), access(lane), bytes);
            }
            groups.erase(groups.begin());
        }
    }

    // --- warps

    // args: result, predicate (or none), value, lane, clamp, members, mode
    void shuffle(const Instruction& instruction, Mask mask, std::uint32_t* r) {
        const std::int32_t* const a = instruction.args;
        require_members(mask, get<std::uint32_t>(r + a[5], lane_));
        std::uint32_t values[lanes];
        std::memcpy(values, r + a[2], sizeof values);
        for_lanes(mask, [&](int lane) {
            const std::uint32_t b = get<std::uint32_t>(r + a[3], lane) & 31, c = get<std::uint32_t>(r + a[4], lane);
            const int clamp = static_cast<int>(c & 31), segment = static_cast<int>(c >> 8 & 31), by = static_cast<int>(b);
            const int most = (lane & segment) | (clamp & ~segment), first = lane & segment;
            int from = lane;
            bool inside = true;
            switch (a[6]) {
                case SHFL_up:
                    from = lane - by;
                    inside = from >= most;
                    break;
                case SHFL_down:
                    from = lane + by;
                    inside = from <= most;
                    break;
                case SHFL_bfly:
                    from = lane ^ by;
                    inside = from <= most;
                    break;
                default:
                    from = first | (by & ~segment);
                    inside = from <= most;
            }
            if (!inside) from = lane;
            if (!(mask >> from & 1)) throw Fault(text("a shuffle from lane ", from, ", which does not take part"));
            set<std::uint32_t>(r + a[0], lane, values[from]);
            if (a[1] != no_slot) set<bool>(r + a[1], lane, inside);
        });
    }

    // args: result, predicate, negated, members, mode
    void vote(const Instruction& instruction, Mask mask, std::uint32_t* r) {
        const std::int32_t* const a = instruction.args;
        require_members(mask, get<std::uint32_t>(r + a[3], lane_));
        const Mask votes = (a[2] ? ~r[a[1]] : r[a[1]]) & mask;
        for_lanes(mask, [&](int lane) {
            switch (a[4]) {
                case VOTE_ballot:
                    return set<std::uint32_t>(r + a[0], lane, votes);
                case VOTE_any:
                    return set<bool>(r + a[0], lane, votes != 0);
                case VOTE_all:
                    return set<bool>(r + a[0], lane, votes == mask);
                default:
                    return set<bool>(r + a[0], lane, votes == 0 || votes == mask);
            }
        });
    }

    // args: result, value, members, mode
    void reduce(const Instruction& instruction, Mask mask, std::uint32_t* r) {
        const std::int32_t* const a = instruction.args;
        require_members(mask, get<std::uint32_t>(r + a[2], lane_));
        std::uint32_t result = get<std::uint32_t>(r + a[1], lane_);
        for_lanes(mask & (mask - 1), [&](int lane) {
            const std::uint32_t x = get<std::uint32_t>(r + a[1], lane);
            const auto s = static_cast<std::int32_t>(result), t = static_cast<std::int32_t>(x);
            switch (a[3]) {
                case REDUX_add:
                    result += x;
                    break;
                case REDUX_and:
                    result &= x;
                    break;
                case REDUX_or:
                    result |= x;
                    break;
                case REDUX_xor:
                    result ^= x;
                    break;
                case REDUX_min_s32:
                    result = static_cast<std::uint32_t>(std::min(s, t));
                    break;
                case REDUX_max_s32:
                    result = static_cast<std::uint32_t>(std::max(s, t));
                    break;
                case REDUX_min_u32:
                    result = std::min(result, x);
                    break;
                default:
                    result = std::max(result, x);
            }
        });
        for_lanes(mask, [&](int lane) { set<std::uint32_t>(r + a[0], lane, result); });
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

}  // namespace
}  // namespace ptx

namespace ptx {
namespace {

// Runs a launch, and once more if the value of a racing read might matter.
void run_launch(const Launch& launch, Report& report) {
    const RacingReads poisoned;
    Machine first(launch, report, poisoned);
    const std::vector<unsigned char> before = first.global().save();
    first.run();
    if (first.raced.empty()) return;
    const std::vector<unsigned char> result = first.global().save();
    first.global().restore(before);
    bool same = true;
    try {
        Machine second(launch, report, first.raced);
        second.run();
        same = second.global().save() == result;
    } catch (const Fault&) {
        same = false;
    }
    first.global().restore(result);
    if (same) return;
    const std::uint64_t steps = report.steps;
    report = first.first_race->where;
    report.steps = steps;
    throw Fault(first.first_race->message + ", and the result depends on it");
}

}  // namespace
}  // namespace ptx

// Runs a launch. Returns 0, or 1 with a report of the fault.
extern "C" int ptx_run(const ptx::Launch* launch, ptx::Report* report) {
    report->instruction = -1;
    try {
        ptx::run_launch(*launch, *report);
        return 0;
    } catch (const std::exception& fault) {
        std::snprintf(report->message, sizeof report->message, "%s", fault.what());
        return 1;
    }
}
