// The packing kernels compiled for any processor.
#include "packing/loops.h"

namespace mixtura {

const PackingKernels& plain_packing() {
  static const PackingKernels kernels{search_groups, tile_rows};
  return kernels;
}

}  // namespace mixtura
