#include "packing/packing.h"

#include <algorithm>

namespace mixtura {
namespace {

const PackingKernels& packing_of(InstructionSet set) {
#if defined(__x86_64__)
  if (set == InstructionSet::avx2) return avx2_packing();
  if (set != InstructionSet::plain) return avx512_packing();
#endif
  (void)set;
  return plain_packing();
}

}  // namespace

bool quantise_groups(const void* w, Kind kind, int64_t groups, const Levels& levels,
                     InstructionSet set, int8_t* q, uint16_t* scale) {
  const PackingKernels& kernels = packing_of(set);
  const auto* bytes = static_cast<const uint8_t*>(w);
  const int64_t size = kGroup * bytes_of(kind);
  std::atomic<bool> sound = true;
  Pool::shared().run([&](Team& team) {
    constexpr int64_t kAtOnce = 1024;
    auto& next = team.counter();
    for (int64_t group; (group = next.fetch_add(kAtOnce, std::memory_order_relaxed)) < groups;) {
      const int64_t own = std::min(kAtOnce, groups - group);
      if (!kernels.search(bytes + group * size, kind, own, levels, q + group * kGroup,
                          scale + group)) {
        sound.store(false, std::memory_order_relaxed);
      }
    }
  });
  return sound;
}

bool quantise_blocks(GgufKind kind, const uint8_t* blocks, int64_t count, const Levels& levels,
                     InstructionSet set, int8_t* q, uint16_t* scale) {
  const PackingKernels& kernels = packing_of(set);
  const UnpackBlocks unpack = unpack_of(set);
  constexpr int64_t kGroups = kBlockWeights / kGroup;
  std::atomic<bool> sound = true;
  Pool::shared().run([&](Team& team) {
    // 16 blocks take 16 KiB as fp32, which fit into a core's first cache.
    constexpr int64_t kAtOnce = 16;
    alignas(64) float weights[kAtOnce * kBlockWeights];
    auto& next = team.counter();
    for (int64_t block; (block = next.fetch_add(kAtOnce, std::memory_order_relaxed)) < count;) {
      const int64_t own = std::min(kAtOnce, count - block);
      unpack(kind, blocks + block * bytes_of(kind), own, weights);
      if (!kernels.search(weights, Kind::float32, own * kGroups, levels,
                          q + block * kBlockWeights, scale + block * kGroups)) {
        sound.store(false, std::memory_order_relaxed);
      }
    }
  });
  return sound;
}

void tile_numbers(const Numbers& numbers, bool gated, InstructionSet set, uint8_t* out) {
  const PackingKernels& kernels = packing_of(set);
  // For the two tiles of a unit: the first row of the tile in unit 0, and the end of the tile's
  // rows.
  const int64_t half = numbers.rows / 2, step = gated ? kTile : kUnit;
  const int64_t start[2] = {0, gated ? half : kTile};
  const int64_t end[2] = {gated ? half : numbers.rows, numbers.rows};
  const int64_t units = (gated ? half + kTile - 1 : numbers.rows + kUnit - 1) / step;
  const int64_t unit_bytes = round_up(numbers.inputs, kBlock) / kBlock *
                             static_cast<int64_t>(block_bytes(numbers.bits));
  Pool::shared().run([&](Team& team) {
    auto& next = team.counter();
    for (int64_t unit; (unit = next.fetch_add(1, std::memory_order_relaxed)) < units;) {
      for (int tile = 0; tile < 2; ++tile) {
        const int64_t row = start[tile] + unit * step;
        const int64_t count = std::clamp<int64_t>(end[tile] - row, 0, kTile);
        kernels.tile(numbers, row, static_cast<int>(count), out + unit * unit_bytes + tile * 64);
      }
    }
  });
}

}  // namespace mixtura
