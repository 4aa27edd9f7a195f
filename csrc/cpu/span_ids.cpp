#include "span_ids.h"

#include <algorithm>

#include "threads.h"

namespace sad::cpu {
namespace {

// Some 0.3 ms of work: a thread costs about 20 us to start.
constexpr std::int64_t kTokensPerChunk = 1 << 16;

constexpr std::uint8_t kReason = 1, kAct = 2;

struct Spans {
    const std::int64_t* starts;
    const std::int64_t* ends;
    const std::uint8_t* kinds;
    std::int64_t first, last;
};

// Where the labels go; null where not wanted.
struct Labels {
    std::uint8_t* ids;
    std::uint8_t* m_r;
    std::uint8_t* m_a;

    void write(std::int64_t token, std::uint8_t id) const {
        if (ids) ids[token] = id;
        if (m_r) m_r[token] = id == kReason;
        if (m_a) m_a[token] = id == kAct;
    }
};

// The first span that ends after `begin`; disjoint spans sorted by start are sorted by end too.
std::int64_t first_ending_after(std::int64_t begin, const Spans& spans) {
    return std::upper_bound(spans.ends + spans.first, spans.ends + spans.last, begin) - spans.ends;
}

// Tokens [first, last) of the flattened batch, all of one row.
void label(const std::int64_t* offsets, std::int64_t first, std::int64_t last, const Spans& spans, const Labels& labels) {
    std::int64_t candidate = 0, previous = 0;
    bool placed = false;
    for (std::int64_t t = first; t < last; ++t) {
        const std::int64_t begin = offsets[2 * t], end = offsets[2 * t + 1];
        std::uint8_t id = 0;
        if (end > begin) {
            // Tokens come in reading order, so the candidate only walks forward; where they do not, it is searched anew.
            if (!placed || begin < previous) candidate = first_ending_after(begin, spans);
            placed = true;
            previous = begin;
            while (candidate < spans.last && spans.ends[candidate] <= begin) ++candidate;
            std::int64_t most = 0;
            for (std::int64_t s = candidate; s < spans.last && spans.starts[s] < end; ++s) {
                const std::int64_t covered = std::min(end, spans.ends[s]) - std::max(begin, spans.starts[s]);
                if (covered > most) {  // strictly, so that a tie stays with the earlier span
                    most = covered;
                    id = spans.kinds[s];
                }
            }
        }
        labels.write(t, id);
    }
}

}  // namespace

void span_ids_from_offsets(const std::int64_t* offsets, std::int64_t batch, std::int64_t tokens, const std::int64_t* starts,
                           const std::int64_t* ends, const std::uint8_t* kinds, const std::int64_t* row_splits,
                           std::uint8_t* ids, std::uint8_t* m_r, std::uint8_t* m_a, int threads) {
    const Labels labels{ids, m_r, m_a};
    // Chunks of the flattened batch, so that one long row and many short ones share out alike.
    parallel_for(batch * tokens, kTokensPerChunk, threads, [&](std::int64_t begin, std::int64_t end) {
        while (begin < end) {
            const std::int64_t row = begin / tokens;
            const std::int64_t stop = std::min(end, (row + 1) * tokens);
            const Spans spans{starts, ends, kinds, row_splits[row], row_splits[row + 1]};
            label(offsets, begin, stop, spans, labels);
            begin = stop;
        }
    });
}

}  // namespace sad::cpu
