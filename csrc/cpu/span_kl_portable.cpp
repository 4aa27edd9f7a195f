#include "vec_portable.h"
// The order matters: the passes are written in terms of Vec.
#include "topk_passes.h"

namespace sad::cpu {

Kernels portable_kernels() {
    return {"portable", false, summarize, best_column, compare, gradient, scale, summarize_others, entropy, spread};
}

}  // namespace sad::cpu
