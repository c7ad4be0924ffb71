#include "attention/vec128.h"
#include "recurrent/loops.h"
#include "recurrent/mamba_loops.h"

namespace mixtura {

const DeltaKernels& plain_delta() {
  static constexpr DeltaKernels kernels = kernels_named("plain");
  return kernels;
}

const MambaKernels& plain_mamba() {
  static constexpr MambaKernels kernels = mamba_kernels_named("plain");
  return kernels;
}

}  // namespace mixtura
