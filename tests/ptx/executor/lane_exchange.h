// Operations that exchange values between the lanes of a warp.
#pragma once

#include "accesses.h"

namespace ptx {

class LaneExchange : public Accesses {
 protected:
    using Accesses::Accesses;

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
};

}  // namespace ptx
