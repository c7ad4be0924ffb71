#include "attention/vec128.h"
#include "recurrent/loops.h"

namespace mixtura {

const DeltaKernels& plain_delta() {
  static constexpr DeltaKernels kernels = kernels_named("plain");
  return kernels;
}

}  // namespace mixtura
