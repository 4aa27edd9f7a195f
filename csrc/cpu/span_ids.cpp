#include <algorithm>

#include "kernels.h"
#include "threads.h"

namespace sad::cpu {
namespace {

constexpr std::int64_t tokens_per_chunk = 1 << 16;  // about 0.3 ms of work; starting a thread costs about 20 us

constexpr std::uint8_t reason = 1, act = 2;

// Returns the first span in [first, last) that ends after `begin`. Disjoint spans sorted by start are also sorted by end.
std::int64_t first_ending_after(std::int64_t begin, const std::int64_t* ends, std::int64_t first, std::int64_t last) {
    return std::upper_bound(ends + first, ends + last, begin) - ends;
}

// Writes the labels of tokens [begin_token, end_token) of the flattened batch, all in row `row`.
void label_tokens(const SpanIdsParams& params, std::int64_t row, std::int64_t begin_token, std::int64_t end_token) {
    const std::int64_t *starts = params.starts, *ends = params.ends;
    const std::int64_t first = params.row_splits[row], last = params.row_splits[row + 1];
    std::int64_t candidate = 0, previous = 0;
    bool has_candidate = false;
    for (std::int64_t t = begin_token; t < end_token; ++t) {
        const std::int64_t begin = params.offsets[2 * t], end = params.offsets[2 * t + 1];
        std::uint8_t id = 0;
        if (end > begin) {
            // Tokens come in reading order, so the candidate moves forward. If a token goes back, search again.
            if (!has_candidate || begin < previous) candidate = first_ending_after(begin, ends, first, last);
            has_candidate = true;
            previous = begin;
            while (candidate < last && ends[candidate] <= begin) ++candidate;
            std::int64_t most = 0;
            for (std::int64_t s = candidate; s < last && starts[s] < end; ++s) {
                const std::int64_t covered = std::min(end, ends[s]) - std::max(begin, starts[s]);
                if (covered > most) {  // strict, so that a tie goes to the earlier span
                    most = covered;
                    id = params.kinds[s];
                }
            }
        }
        if (params.ids) params.ids[t] = id;
        if (params.m_r) params.m_r[t] = id == reason;
        if (params.m_a) params.m_a[t] = id == act;
    }
}

}  // namespace

void span_ids_from_offsets(const SpanIdsParams& params, int threads) {
    const std::int64_t tokens = params.tokens;
    // Chunks of the flattened batch divide one long row as evenly as many short rows.
    parallel_for(params.batch * tokens, tokens_per_chunk, threads, [&](std::int64_t begin, std::int64_t end) {
        while (begin < end) {
            const std::int64_t row = begin / tokens;
            const std::int64_t stop = std::min(end, (row + 1) * tokens);
            label_tokens(params, row, begin, stop);
            begin = stop;
        }
    });
}

}  // namespace sad::cpu
