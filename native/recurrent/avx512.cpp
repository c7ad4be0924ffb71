#include "attention/vec512.h"
#include "recurrent/loops.h"
#include "recurrent/mamba_loops.h"

namespace mixtura {

const DeltaKernels& avx512_delta() {
  static constexpr DeltaKernels kernels = kernels_named("avx512");
  return kernels;
}

const MambaKernels& avx512_mamba() {
  static constexpr MambaKernels kernels = mamba_kernels_named("avx512");
  return kernels;
}

}  // namespace mixtura
