#include "instantiate.cuh"

namespace sad::cuda {

KernelTable bfloat16_kernels() { return instantiate<Bfloat16>(); }

}  // namespace sad::cuda
