// A warp: the registers of its 32 lanes, and where each lane is.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "memory.h"
#include "program.h"

namespace ptx {

using Mask = std::uint32_t;
constexpr int lanes = 32;

// Lanes that execute together until they reach the instruction where they meet the others.
struct Path {
    std::int64_t at;
    Mask mask;
    std::int64_t join;
};

// An asynchronous copy that has started.
struct Copy {
    std::uint64_t from;
    std::uint32_t to, bytes;
    std::array<unsigned char, 16> source;  // its bytes at the start
};

enum class State { runs, waits_in_block, waits_in_cluster, done };

struct Warp {
    std::uint32_t index = 0;  // in its block
    std::vector<std::uint32_t> registers;
    std::vector<unsigned char> local;                          // local memory of lane 0, lane 1, ...
    std::vector<Path> paths;                                   // the last one runs
    std::array<std::vector<std::vector<Copy>>, lanes> copies;  // of each lane: the committed groups, then the open one
    State state = State::runs;
    std::uint32_t arrivals = 0;  // at barriers of the cluster; as many as `event.cluster_barriers`, or one more
    Event event;
    std::uint32_t event_number = 0;
    std::uint64_t steps = 0;
    Mask alive = 0;
};

template <typename T>
T get(const std::uint32_t* slot, int lane) {
    if constexpr (std::is_same_v<T, bool>) {
        return slot[0] >> lane & 1;
    } else {
        T x;
        std::memcpy(&x, slot + (sizeof(T) == 8 ? 2 * lane : lane), sizeof x);
        return x;
    }
}

template <typename T>
void set(std::uint32_t* slot, int lane, T x) {
    if constexpr (std::is_same_v<T, bool>) {
        slot[0] = (slot[0] & ~(1u << lane)) | static_cast<std::uint32_t>(x) << lane;
    } else if constexpr (sizeof(T) == 8) {
        std::memcpy(slot + 2 * lane, &x, 8);
    } else {
        std::uint32_t word = 0;
        if constexpr (std::is_signed_v<T> && std::is_integral_v<T>) word = static_cast<std::uint32_t>(std::int32_t{x});
        std::memcpy(&word, &x, sizeof x);
        slot[lane] = word;
    }
}

// Computes a register of all lanes in `mask` from other registers.
template <typename R, typename... Operands, typename F>
void each_lane(std::uint32_t* registers, const Instruction& instruction, Mask mask, const F& f) {
    const std::int32_t* const args = instruction.args;
    const auto apply = [&]<std::size_t... I>(int lane, std::index_sequence<I...>) {
        return f(get<Operands>(registers + args[I + 1], lane)...);
    };
    constexpr std::make_index_sequence<sizeof...(Operands)> all{};
    std::uint32_t* const to = registers + args[0];
    if constexpr (std::is_same_v<R, bool>) {
        Mask bits = 0;
        for (int lane = 0; lane < lanes; ++lane) bits |= static_cast<Mask>(static_cast<bool>(apply(lane, all))) << lane;
        to[0] = (to[0] & ~mask) | (bits & mask);
    } else {
        R result[lanes];
        for (int lane = 0; lane < lanes; ++lane) result[lane] = static_cast<R>(apply(lane, all));
        for (int lane = 0; lane < lanes; ++lane) {
            if (mask >> lane & 1) set<R>(to, lane, result[lane]);
        }
    }
}

}  // namespace ptx
