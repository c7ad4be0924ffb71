#include "attention/vec256.h"
#include "recurrent/loops.h"

namespace mixtura {

const DeltaKernels& avx2_delta() {
  static constexpr DeltaKernels kernels = kernels_named("avx2");
  return kernels;
}

}  // namespace mixtura
