// The packing kernels compiled for AVX2.
#include "packing/loops.h"

namespace mixtura {

const PackingKernels& avx2_packing() {
  static const PackingKernels kernels{search_groups, tile_rows};
  return kernels;
}

}  // namespace mixtura
