// Packing without any instruction set's help.
#include "packing/loops.h"

namespace mixtura {

const PackingKernels& plain_packing() {
  static const PackingKernels kernels{search_groups, tile_rows};
  return kernels;
}

}  // namespace mixtura
