#include "attention/vec512.h"
#include "recurrent/loops.h"

namespace mixtura {

const DeltaKernels& avx512_delta() {
  static constexpr DeltaKernels kernels = kernels_named("avx512");
  return kernels;
}

}  // namespace mixtura
