// What a measurement chose for the rows of one call (`sad tune`). By default the plan derives everything.
#pragma once

#include <optional>

namespace sad::cuda {

enum class Strategy { resident, streamed, sliced };

struct PlanChoice {
    std::optional<Strategy> strategy;  // of whole rows; derived if there is none, or if it does not fit the rows or the GPU
    int cluster = 1;                   // resident: blocks that share a row
    double share = 1.0;                // streamed: blocks, as a share of those that run at the same time
    int waves = 1;                     // how often the slices of all rows fill the GPU; 0: rows are never sliced
};

}  // namespace sad::cuda
