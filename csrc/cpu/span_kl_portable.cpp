#include "vec_portable.h"
// Keep this order: the passes use the Vec that the header above defines.
#include "topk_passes.h"

namespace sad::cpu {

RowPasses portable_passes() {
    return {"portable", false, sum_exps,        find_argmax, sum_divergence,
            gradient,   scale, sum_exps_except, entropy,     write_scaled_softmax};
}

}  // namespace sad::cpu
