#include "instantiate.cuh"

namespace sad::cuda {

KernelTable float32_kernels() { return instantiate<float>(); }

}  // namespace sad::cuda
