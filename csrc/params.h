// What the span divergences are called with on every compiled backend: sizes and raw pointers.
//
// z is a logit after scale and cap, p = softmax(z_teacher / T), q = softmax(z_student / T) over the first `vocab` columns,
// r = log q - log p, m = beta p + (1 - beta) q and KL(a || b) = sum_v a (expm1(log b - log a) - (log b - log a)).
//
//   forward   KL(p || q)                               gradient by z_student   (q - p) / T
//   reverse   KL(q || p)                                                       q (G - E_q[G]) / T,   G = r
//   jsd       beta KL(p || m) + (1 - beta) KL(q || m)                          the same,   G = (1 - beta) (log q - log m)
//
// Rows with kinds[n] == 0 are not read: outputs 0, gradient 0. Rows of weight 0 get gradient 0.
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
                   in = static_cast<std::uint32_t>(inner);  // a GPU divides 64 bits slowly
        return n / in * outer_stride + n % in * inner_stride;
    }
};

// z = cap tanh(scale x / cap), or scale x where cap is 0.
struct Side {
    Rows<const void> rows;
    float scale, cap;
};

struct SpanKlParams {
    std::int64_t rows, vocab;
    std::int64_t student_columns;  // columns of grad, at least vocab; the surplus is filled with zeros
    Side student, teacher;
    Rows<void> grad;  // data null: no gradient; may alias student
    Divergence divergence;
    float beta, temperature;
    const std::uint8_t* kinds;
    const float* weights;      // (rows), with grad
    const float* lse_given;    // (2, rows) log-sum-exps of student and teacher in nats; null: the rows' own
    const float* state_given;  // (3, rows) an earlier `state`; then only the gradient is made
    float* value;              // (rows) the divergence, or null
    float* state;          // (3, rows) log-sum-exps and E_q[G], or null; (2, rows) when value is null: log-sum-exps alone
    float* entropies;      // (2, rows) teacher, student, in nats; null, like argmax, without statistics
    std::int32_t* argmax;  // (2, rows) student, teacher: the lowest of the best columns
};

}  // namespace sad
