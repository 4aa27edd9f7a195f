// A program and a launch, as tests/ptx/machine.py passes them.
#pragma once

#include <cstdint>

namespace ptx {

constexpr int no_slot = -1;

// An instruction. Registers are slots of 4-byte words in the registers of a warp: one word for a predicate (a bit per lane),
// else 32 or 64 words. A constant is a register too.
struct Instruction {
    std::int32_t op;
    std::int32_t guard;    // the slot of a predicate
    std::int32_t negated;  // the guard must be false
    std::int32_t args[13];
};

// Memory spaces, and the top four bits of a generic address.
enum Space : std::int32_t { global_space, shared_space, local_space, param_space, generic_space, shared_cluster_space };
constexpr int window_shift = 60;
constexpr std::uint64_t window(Space space) { return static_cast<std::uint64_t>(space) << window_shift; }
// A shared address has the rank of its block + 1 above its lower 24 bits.
constexpr int rank_shift = 24;

// What a register holds at the start of a block.
struct Initial {
    std::int32_t slot, words, kind, special;
    std::uint64_t value;
};
enum InitialKind : std::int32_t { constant, special_register, shared_address };

struct Launch {
    const Instruction* instructions;
    std::int64_t instruction_count, register_words;
    const Initial* initial;
    std::int64_t initial_count;
    std::uint32_t grid[3], threads, cluster;
    std::uint32_t shared_bytes, local_bytes;
    const unsigned char* parameters;
    std::uint64_t parameter_bytes;
    const std::uint64_t* allocations;  // begin and end of each
    std::int64_t allocation_count;
    std::uint64_t noise;       // seed of the errors of approximations, 0 for none
    std::uint64_t order;       // 0: clusters in order, 1: in reverse, else a seed
    std::uint64_t most_steps;  // per warp
};

// The fault of a launch. `instruction` is -1 if no instruction caused it.
struct Report {
    std::int64_t instruction;
    std::uint32_t block[3], thread;
    std::uint64_t steps;  // instructions of all warps
    char message[512];
};

}  // namespace ptx
