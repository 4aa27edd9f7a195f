// The CPU kernels, as the binding calls them. They know pointers and sizes, no framework. Results have the same bits for any
// number of threads.
#pragma once

#include <cstdint>

#include "params.h"

namespace sad::cpu {

struct RowPasses;  // the passes compiled for one instruction set, see dispatch.h

// Computes every output whose pointer is not null, on at most `threads` threads.
void span_kl(const SpanKlParams& params, const RowPasses& passes, int threads);

// Computes every output whose pointer is not null, on at most `threads` threads.
void topk_span_kl(const TopkSpanKlParams& topk, const RowPasses& passes, int threads);

// Multiplies the rows of grad (rows, columns) with kinds != 0 by `factor`.
void scale_rows(std::int64_t rows, std::int64_t columns, const Rows<void>& grad, const std::uint8_t* kinds, float factor,
                const RowPasses& passes, int threads);

// Writes the label of every token, on at most `threads` threads; short batches run on one thread.
void span_ids_from_offsets(const SpanIdsParams& params, int threads);

}  // namespace sad::cpu
