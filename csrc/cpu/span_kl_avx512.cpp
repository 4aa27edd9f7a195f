#include "vec_avx512.h"
// The order matters: the passes are written in terms of Vec.
#include "topk_passes.h"

namespace sad::cpu {

Kernels avx512_kernels() {
    return {"avx512", false, summarize, best_column, compare, gradient, scale, summarize_others, entropy, spread};
}

}  // namespace sad::cpu
