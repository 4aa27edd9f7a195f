// The span KL on the CPU: what the binding calls, on raw pointers.
//
// For every row n with kinds[n] != 0, with p = softmax(t / T), q = softmax(s / T) over the first `vocab` columns and
// r = log q - log p:   kl[n] = sum_v p (expm1(r) - r),   grad[n, v] = weights[n] (q - p) / T.
// Rows with kinds[n] == 0 are not read: kl 0, grad 0. Rows of weight 0 get grad 0.
#pragma once

#include <cstdint>

namespace sad::cpu {

enum class Dtype : int { float32 = 0, bfloat16 = 1, float16 = 2 };

// Row i begins at element (i / inner) * outer_stride + (i % inner) * inner_stride.
template <typename T>
struct Rows {
    T* data;
    Dtype dtype;
    std::int64_t inner, outer_stride, inner_stride;

    std::int64_t offset(std::int64_t row) const { return (row / inner) * outer_stride + (row % inner) * inner_stride; }
};

struct SpanKlParams {
    std::int64_t rows, vocab;
    std::int64_t student_columns;  // columns of grad, at least vocab; the surplus is filled with zeros
    Rows<const void> student, teacher;
    Rows<void> grad;  // data null: no gradient; may alias student
    const std::uint8_t* kinds;
    const float* weights;    // with grad
    const float* lse_given;  // (2, rows): log-sum-exps from an earlier forward; null: compute them
    float *kl, *lse;         // (rows), (2, rows); null when lse_given is set
    float* extras;           // (3, rows): teacher entropy, student entropy, argmax agreement; or null
    float temperature;
};

// Processes rows [begin, end). One definition per instruction set, the same source compiled three times.
using SpanKlRows = void (*)(const SpanKlParams&, std::int64_t begin, std::int64_t end);
void span_kl_rows_portable(const SpanKlParams&, std::int64_t begin, std::int64_t end);
void span_kl_rows_avx2(const SpanKlParams&, std::int64_t begin, std::int64_t end);
void span_kl_rows_avx512(const SpanKlParams&, std::int64_t begin, std::int64_t end);

// Multiplies the rows of grad (rows, columns) with kinds != 0 by factor.
struct ScaleParams {
    std::int64_t rows, columns;
    Rows<void> grad;
    const std::uint8_t* kinds;
    float factor;
};

using ScaleRows = void (*)(const ScaleParams&, std::int64_t begin, std::int64_t end);
void scale_rows_portable(const ScaleParams&, std::int64_t begin, std::int64_t end);
void scale_rows_avx2(const ScaleParams&, std::int64_t begin, std::int64_t end);
void scale_rows_avx512(const ScaleParams&, std::int64_t begin, std::int64_t end);

}  // namespace sad::cpu
