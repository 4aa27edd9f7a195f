#include "vec_avx2.h"
// The order matters: the passes are written in terms of Vec.
#include "topk_passes.h"

namespace sad::cpu {

Kernels avx2_kernels() {
    return {"avx2", false, summarize, best_column, compare, gradient, scale, summarize_others, entropy, spread};
}

}  // namespace sad::cpu
