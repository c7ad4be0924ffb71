// Attention with vectors of sixteen floats (AVX-512).
#include "attention/vec512.h"
#include "attention/loops.h"

namespace mixtura {

const AttentionKernels& avx512_attention() {
  static constexpr AttentionKernels kernels = kernels_named("avx512");
  return kernels;
}

}  // namespace mixtura
