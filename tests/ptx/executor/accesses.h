// Loads, stores, atomic operations, matrices and asynchronous copies, each with the checks of its accesses.
#pragma once

#include "execution.h"
#include "operations.h"

namespace ptx {

class Accesses : public Execution {
 protected:
    using Execution::Execution;

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
};

}  // namespace ptx
