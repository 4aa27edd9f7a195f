// The CPU kernels, as the binding calls them. They know pointers and sizes, no framework. Results have the same bits for any
// number of threads.
#pragma once

#include <cstdint>

#include "params.h"

namespace sad::cpu {

enum class Reduction { mean, span_mean, turn_mean, sum, none };

// The weight of each row in the loss. `sadkernels/reference/row_weights.py` defines the values.
struct RowWeightsParams {
    std::int64_t rows, tokens;     // with shift, row t of each `tokens` rows stands for token t + 1
    const void* ids;               // (rows) contiguous span ids
    int id_bytes;                  // bytes per id: 1, 2, 4 or 8
    const float* token_weights;    // (rows); or null for 1
    const std::int64_t* turn_ids;  // (rows); or null for runs of one writer
    const double* normalizer;      // (3) replaces the divisors of reason, act and observe; or null
    double lambda_reason, lambda_act, lambda_observe;
    Reduction reduction;
    bool shift;
    std::uint8_t* kinds;   // (rows)
    std::uint8_t* read;    // (rows) kinds, but 0 for rows of weight 0; or null
    float* weights;        // (rows)
    std::int64_t* counts;  // (3) reason, act and observe rows
};

struct RowPasses;  // the passes compiled for one instruction set, see dispatch.h

// Computes every output whose pointer is not null, on at most `threads` threads.
void span_kl(const SpanKlParams& params, const RowPasses& passes, int threads);

// Computes every output whose pointer is not null, on at most `threads` threads.
void topk_span_kl(const TopkSpanKlParams& topk, const RowPasses& passes, int threads);

// Multiplies the rows of grad (rows, columns) with kinds != 0 by `factor`.
void scale_rows(std::int64_t rows, std::int64_t columns, const Rows<void>& grad, const std::uint8_t* kinds, float factor,
                const RowPasses& passes, int threads);

// Writes kinds, weights and counts, on the calling thread.
void row_weights(const RowWeightsParams& params);

// Writes the label of every token, on at most `threads` threads; short batches run on one thread.
void span_ids_from_offsets(const SpanIdsParams& params, int threads);

}  // namespace sad::cpu
