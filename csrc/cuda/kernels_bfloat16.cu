#include "kernels.cuh"

namespace sad::cuda {

Kernels bfloat16_kernels() { return kernels_for<Bfloat16>(); }

}  // namespace sad::cuda
