#include "kernels.cuh"

namespace sad::cuda {

Kernels float16_kernels() { return kernels_for<Float16>(); }

}  // namespace sad::cuda
