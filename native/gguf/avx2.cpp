// The unpacking of K-quants compiled for AVX2.
#include "gguf/loops.h"

namespace mixtura {

UnpackBlocks avx2_unpack() { return unpack_of_kind; }

}  // namespace mixtura
