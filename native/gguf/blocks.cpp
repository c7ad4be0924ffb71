#include "gguf/blocks.h"

#include <algorithm>

#include "machine/pool.h"

namespace mixtura {

UnpackBlocks unpack_of(InstructionSet set) {
#if defined(__x86_64__)
  if (set == InstructionSet::avx2) return avx2_unpack();
  if (set != InstructionSet::plain) return avx512_unpack();
#endif
  (void)set;
  return plain_unpack();
}

void unpack_blocks(GgufKind kind, const uint8_t* blocks, int64_t count, InstructionSet set,
                   float* out) {
  const UnpackBlocks unpack = unpack_of(set);
  Pool::shared().run([&](Team& team) {
    constexpr int64_t kAtOnce = 64;
    auto& next = team.counter();
    for (int64_t block; (block = next.fetch_add(kAtOnce, std::memory_order_relaxed)) < count;) {
      unpack(kind, blocks + block * bytes_of(kind), std::min(kAtOnce, count - block),
             out + block * kBlockWeights);
    }
  });
}

}  // namespace mixtura
