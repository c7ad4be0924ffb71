#include "packed/kernels.h"

namespace mixtura {

const Kernels& kernels_of(InstructionSet set) {
#if defined(__x86_64__)
  if (set == InstructionSet::avx2) return avx2_kernels();
  if (set != InstructionSet::plain) return avx512_kernels();
#endif
  (void)set;
  return plain_kernels();
}

}  // namespace mixtura
