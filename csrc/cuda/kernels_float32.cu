#include "kernels.cuh"

namespace sad::cuda {

Kernels float32_kernels() { return kernels_for<float>(); }

}  // namespace sad::cuda
