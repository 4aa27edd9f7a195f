#include "instantiate.cuh"

namespace sad::cuda {

KernelTable float16_kernels() { return instantiate<Float16>(); }

}  // namespace sad::cuda
