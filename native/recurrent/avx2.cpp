#include "attention/vec256.h"
#include "recurrent/loops.h"
#include "recurrent/mamba_loops.h"

namespace mixtura {

const DeltaKernels& avx2_delta() {
  static constexpr DeltaKernels kernels = kernels_named("avx2");
  return kernels;
}

const MambaKernels& avx2_mamba() {
  static constexpr MambaKernels kernels = mamba_kernels_named("avx2");
  return kernels;
}

}  // namespace mixtura
