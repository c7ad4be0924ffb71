#include "attention/vec128.h"
#include "attention/loops.h"

namespace mixtura {

const AttentionKernels& plain_attention() {
  static constexpr AttentionKernels kernels = kernels_named("plain");
  return kernels;
}

}  // namespace mixtura
