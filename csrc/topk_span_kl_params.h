// What the losses against listed columns and labels are called with on every compiled backend.
//
// The outcomes of a row are its listed columns and the tail, all other columns as one; q_tail is the sum of their q.
//
//   value                     alpha KL(p || q) + (1 - alpha) (-log q_label)
//   gradient by z, listed     (alpha (q_j - p_j)               + (1 - alpha) (q_j - [j = label])) / T
//                  tail       (alpha q_j (1 - p_tail / q_tail) + (1 - alpha) (q_j - [j = label])) / T
//
// A row whose label is -1 has no second term.
#pragma once

#include <cstdint>

#include "span_kl_params.h"

namespace sad {

struct TopkSpanKlParams {
    // The student's half alone counts: `teacher`, `divergence`, `beta` and `lse_given` are not looked at. `state` and
    // `state_given` are (2, rows), log-sum-exps over all columns and over those neither listed nor the label; `entropies`
    // and `argmax` are (rows).
    SpanKlParams base;
    std::int64_t listed;  // columns a row, perhaps 0
    const std::int32_t*
        columns;            // (rows, listed), ascending; those from `vocab` on are absent, of equal ones the first counts
    const float* log_p;     // (rows, listed)
    const float* log_tail;  // (rows) log p_tail
    const std::int32_t* labels;  // (rows) less than vocab, or null; then alpha is 1
    float alpha;
};

}  // namespace sad
