// The packing kernels compiled for AVX-512.
#include "packing/loops.h"

namespace mixtura {

const PackingKernels& avx512_packing() {
  static const PackingKernels kernels{search_groups, tile_rows};
  return kernels;
}

}  // namespace mixtura
