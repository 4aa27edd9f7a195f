// Runs a launch: the clusters one after the other, and the warps of a cluster in turns, each until it waits or ends.
#include <numeric>
#include <random>

#include "lane_exchange.h"
#include "operations.h"  // the numbers of the operations, made from the table

namespace ptx {
namespace {

class Machine : public LaneExchange {
 public:
    using LaneExchange::LaneExchange;

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
};

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
