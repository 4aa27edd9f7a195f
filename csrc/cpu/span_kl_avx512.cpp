#include "vec_avx512.h"
// Keep this order: the passes use the Vec that the header above defines.
#include "topk_passes.h"

namespace sad::cpu {

RowPasses avx512_passes() {
    return {"avx512", false, sum_exps,        find_argmax, sum_divergence,
            gradient, scale, sum_exps_except, entropy,     write_scaled_softmax};
}

}  // namespace sad::cpu
