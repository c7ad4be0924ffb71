// Compares the unpacking of K-quants in each instruction set with the plain one, and quantising
// blocks with quantising unpacked weights, bit for bit. All buffers have exactly the size that may
// be accessed, so that `make sanitize` finds accesses outside.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "gguf/blocks.h"
#include "machine/pool.h"
#include "packing/packing.h"

namespace mixtura {
namespace {

int failures = 0;

std::mt19937 random_bits(7);

std::vector<float> unpacked(GgufKind kind, const std::vector<uint8_t>& blocks, int64_t count,
                            InstructionSet set) {
  std::vector<float> out(count * kBlockWeights, -1.0f);
  unpack_blocks(kind, blocks.data(), count, set, out.data());
  return out;
}

void check(GgufKind kind, int64_t count) {
  std::vector<uint8_t> blocks(count * bytes_of(kind));
  // Bytes below 0x78 make every fp16 factor finite.
  for (uint8_t& one : blocks) one = static_cast<uint8_t>(random_bits() % 0x78);
  const auto plain = unpacked(kind, blocks, count, InstructionSet::plain);
  for (InstructionSet set : {InstructionSet::avx2, InstructionSet::avx512}) {
    if (!has(set)) continue;
    const auto found = unpacked(kind, blocks, count, set);
    if (std::memcmp(found.data(), plain.data(), plain.size() * sizeof(float)) != 0) {
      std::printf("kind %d: %lld blocks differ\n", static_cast<int>(kind),
                  static_cast<long long>(count));
      ++failures;
    }
  }
}

void check_quantised(GgufKind kind, int64_t count, InstructionSet set) {
  std::vector<uint8_t> blocks(count * bytes_of(kind));
  for (uint8_t& one : blocks) one = static_cast<uint8_t>(random_bits() % 0x60);
  const std::vector<float> weights = unpacked(kind, blocks, count, set);
  static constexpr float kTried[] = {-8.2f, -7.0f};
  constexpr Levels kLevels{kTried, 2, -8.0f, 7.0f, 458528.0f};
  const int64_t groups = count * kBlockWeights / kGroup;
  std::vector<int8_t> q(groups * kGroup), other_q(groups * kGroup);
  std::vector<uint16_t> scale(groups), other_scale(groups);
  const bool sound = quantise_groups(weights.data(), Kind::float32, groups, kLevels, set, q.data(),
                                     scale.data());
  const bool other_sound = quantise_blocks(kind, blocks.data(), count, kLevels, set,
                                           other_q.data(), other_scale.data());
  if (sound != other_sound || q != other_q || scale != other_scale) {
    std::printf("kind %d: %lld quantised blocks differ\n", static_cast<int>(kind),
                static_cast<long long>(count));
    ++failures;
  }
}

}  // namespace
}  // namespace mixtura

int main() {
  using namespace mixtura;
  Pool::shared().set_threads(3);
  for (int kind = 10; kind <= 14; ++kind) {
    for (int64_t count : {1, 63, 64, 131}) check(static_cast<GgufKind>(kind), count);
    for (InstructionSet set : {InstructionSet::plain, InstructionSet::avx2,
                               InstructionSet::avx512}) {
      for (int64_t count : {1, 16, 45}) {
        if (has(set)) check_quantised(static_cast<GgufKind>(kind), count, set);
      }
    }
  }
  std::printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
  return failures != 0;
}
