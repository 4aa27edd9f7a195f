// Character spans to token labels. Knows pointers and sizes, no framework.
#pragma once

#include <cstdint>

namespace sad::cpu {

// Labels every token with the kind of the span that covers most of its characters; ties go to the earlier span.
// Characters outside all spans do not compete. Tokens of zero width get 0.
//
//   offsets     batch x tokens x 2, contiguous: half-open character range of each token
//   starts      half-open spans of all rows; within a row sorted by start and not overlapping
//   ends
//   kinds       label of each span
//   row_splits  batch + 1: the spans of row i are [row_splits[i], row_splits[i + 1])
//   ids         batch x tokens, written completely; null where not wanted
//   m_r, m_a    likewise: 1 where the label is reason, where it is act, else 0
//   threads     upper bound; more than one are started only where each has enough to do
void span_ids_from_offsets(const std::int64_t* offsets, std::int64_t batch, std::int64_t tokens, const std::int64_t* starts,
                           const std::int64_t* ends, const std::uint8_t* kinds, const std::int64_t* row_splits,
                           std::uint8_t* ids, std::uint8_t* m_r, std::uint8_t* m_a, int threads);

}  // namespace sad::cpu
