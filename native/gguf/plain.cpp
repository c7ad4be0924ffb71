// The unpacking of K-quants compiled for any processor.
#include "gguf/loops.h"

namespace mixtura {

UnpackBlocks plain_unpack() { return unpack_of_kind; }

}  // namespace mixtura
