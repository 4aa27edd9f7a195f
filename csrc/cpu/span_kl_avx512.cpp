#include "vec_avx512.h"
// The order matters: the rows are written in terms of Vec.
#include "span_kl_rows.h"

namespace sad::cpu {

void span_kl_rows_avx512(const SpanKlParams& a, std::int64_t begin, std::int64_t end) { span_kl_rows_for(a)(a, begin, end); }

void scale_rows_avx512(const ScaleParams& a, std::int64_t begin, std::int64_t end) { scale_rows_for(a)(a, begin, end); }

}  // namespace sad::cpu
