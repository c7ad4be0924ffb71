#include "attention/vec256.h"
#include "attention/loops.h"

namespace mixtura {

const AttentionKernels& avx2_attention() {
  static constexpr AttentionKernels kernels = kernels_named("avx2");
  return kernels;
}

}  // namespace mixtura
