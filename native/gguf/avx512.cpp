// The unpacking of K-quants compiled for AVX-512.
#include "gguf/loops.h"

namespace mixtura {

UnpackBlocks avx512_unpack() { return unpack_of_kind; }

}  // namespace mixtura
