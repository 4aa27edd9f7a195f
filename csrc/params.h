// The parameters of every kernel, the same for all compiled backends: sizes and raw pointers. `params_binding.h` binds these
// structs to Python, one line per field.
//
// Notation: z is a logit after scale and cap, p = softmax(z_teacher / T) and q = softmax(z_student / T) over the first
// `vocab` columns, r = log q - log p, m = beta p + (1 - beta) q and KL(a || b) = sum_v a (expm1(log b - log a) - (log b -
// log a)).
//
//   forward   KL(p || q)                               gradient by z_student   (q - p) / T
//   reverse   KL(q || p)                               gradient by z_student   q (G - E_q[G]) / T,   G = r
//   jsd       beta KL(p || m) + (1 - beta) KL(q || m)  gradient by z_student   q (G - E_q[G]) / T,   G = (1 - beta) (log q -
//   log m)
//
// The kernels call G `dlogp` and E_q[G] `mean_dlogp`. q G is the derivative of the divergence by log q, up to a term that
// cancels in q (G - E_q[G]).
//
// Rows with kinds[n] == 0 are not read: their outputs and their gradient are 0. A row of weight 0 gets the gradient 0.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SAD_HOST_DEVICE __host__ __device__
#else
#define SAD_HOST_DEVICE
#endif

namespace sad {

constexpr double log2e = 1.4426950408889634, ln2 = 0.6931471805599453;

enum class Dtype : int { float32 = 0, bfloat16 = 1, float16 = 2 };
enum class Divergence : int { forward = 0, reverse = 1, jsd = 2 };

SAD_HOST_DEVICE constexpr int size_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

// Row i < 2^32 begins at element (i / inner) * outer_stride + (i % inner) * inner_stride.
template <typename T>
struct Rows {
    T* data;
    Dtype dtype;
    std::int64_t inner, outer_stride, inner_stride;

    SAD_HOST_DEVICE std::int64_t offset(std::int64_t row) const {
        const auto n = static_cast<std::uint32_t>(row),
                   in = static_cast<std::uint32_t>(inner);  // 32 bits, because GPUs divide 64-bit integers slowly
        return n / in * outer_stride + n % in * inner_stride;
    }
};

// Logits of the student or the teacher: z = cap tanh(scale x / cap), or z = scale x if cap is 0.
struct Logits {
    Rows<const void> rows;
    float scale, cap;
};

// A pointer may be null if the output or the input is not needed.
struct SpanKlParams {
    std::int64_t rows, vocab;
    std::int64_t student_columns;  // columns of grad, at least vocab; the gradient beyond vocab is 0
    Logits student, teacher;
    Rows<void> grad;  // null data: no gradient; may alias student
    Divergence divergence;
    double beta;  // in float64, so that 1 - beta keeps its digits
    float temperature;
    const std::uint8_t* kinds;
    const float* weights;      // (rows), needed with grad
    const float* lse_given;    // (4, rows) log-sum-exps, without E_q[G] in the form of `state`; null: computed from the rows
    const float* state_given;  // (5, rows) an earlier `state`; if given, only the gradient is computed
    float* value;              // (rows) the divergence
    // (5, rows): log-sums of student and teacher, E_q[G], origins of student and teacher. If value is null, (4, rows):
    // without E_q[G]. The log-sum-exp of a row in nats is log-sum + factor origin; `sadkernels/divergence.py` has the
    // definition.
    float* state;
    float* entropies;      // (2, rows) teacher and student, in nats; null without statistics
    std::int32_t* argmax;  // (2, rows) student and teacher, the lowest column of the maximum; null without statistics
};

// The losses against the teacher's top-k columns and against labels. A row has k + 1 outcomes: its k columns and the tail,
// which is all other columns together. q_tail is the sum of their q.
//
//   value                    alpha KL(p || q) + (1 - alpha) (-log q_label)
//   gradient by z_j, top-k   (alpha (q_j - p_j)               + (1 - alpha) (q_j - [j = label])) / T
//                    tail    (alpha q_j (1 - p_tail / q_tail) + (1 - alpha) (q_j - [j = label])) / T
//
// A row with label -1 has no second term.
struct TopkSpanKlParams {
    // `teacher`, `divergence`, `beta` and `lse_given` are unused. `state` and `state_given` are (4, rows): log-sums over all
    // columns, and over the columns that are neither in the top k nor the label, then their origins. `entropies` and
    // `argmax` are (rows).
    SpanKlParams base;
    std::int64_t k;  // columns per row; may be 0
    // (rows, k) ascending; entries from `vocab` on are absent; the first of equal entries counts
    const std::int32_t* columns;
    const float* log_p;          // (rows, k)
    const float* log_tail;       // (rows) log p_tail
    const std::int32_t* labels;  // (rows) less than vocab; null requires alpha = 1
    float alpha;
};

// Character spans to token labels. Each token gets the kind of the span that covers most of its characters; a tie goes to
// the earlier span. Characters outside all spans do not count. A token of zero width gets 0.
struct SpanIdsParams {
    std::int64_t batch, tokens;
    const std::int64_t* offsets;        // (batch, tokens, 2) contiguous: the half-open character range of each token
    const std::int64_t *starts, *ends;  // half-open spans of all rows; sorted by start and disjoint within a row
    const std::uint8_t* kinds;          // the label of each span
    const std::int64_t* row_splits;     // (batch + 1) row i has the spans [row_splits[i], row_splits[i + 1])
    std::uint8_t* ids;                  // (batch, tokens) labels, or null
    std::uint8_t *m_r, *m_a;            // (batch, tokens) 1 if the label is reason (m_r) or act (m_a), else 0; or null
};

}  // namespace sad
