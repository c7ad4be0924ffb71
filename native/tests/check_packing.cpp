// Compares packing in each instruction set with the plain one, byte for byte. All buffers have
// exactly the size that may be accessed, so that `make sanitize` finds accesses outside.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "packing/packing.h"

namespace mixtura {
namespace {

int failures = 0;

std::mt19937 random_bits(7);

constexpr InstructionSet kSets[] = {InstructionSet::avx2, InstructionSet::avx512,
                                    InstructionSet::amx};
constexpr float kTried[] = {-8.2f, -7.0f, -8.8f};
constexpr Levels kLevels{kTried, 3, -8.0f, 7.0f, 458528.0f};

struct Found {
  std::vector<int8_t> q;
  std::vector<uint16_t> scale;
  bool sound;

  bool operator==(const Found&) const = default;
};

Found quantised(const std::vector<uint8_t>& w, Kind kind, InstructionSet set) {
  const int64_t groups = static_cast<int64_t>(w.size()) / (kGroup * bytes_of(kind));
  Found found{std::vector<int8_t>(groups * kGroup), std::vector<uint16_t>(groups), false};
  found.sound = quantise_groups(w.data(), kind, groups, kLevels, set, found.q.data(),
                                found.scale.data());
  return found;
}

void check_search(int64_t groups, Kind kind) {
  std::vector<uint8_t> w(groups * kGroup * bytes_of(kind));
  // Clearing the highest exponent bit makes each weight smaller than 2, which is within the bound.
  for (size_t i = 0; i < w.size(); ++i) {
    w[i] = static_cast<uint8_t>(random_bits());
    if (static_cast<int64_t>(i) % bytes_of(kind) == bytes_of(kind) - 1) w[i] &= 0xbf;
  }
  const Found plain = quantised(w, kind, InstructionSet::plain);
  for (InstructionSet set : kSets) {
    if (has(set) && !(plain.sound && quantised(w, kind, set) == plain)) {
      std::printf("%lld groups differ\n", static_cast<long long>(groups));
      ++failures;
    }
  }
}

std::vector<uint8_t> tiled(const Numbers& numbers, bool gated, InstructionSet set) {
  const int64_t rows = gated ? 2 * round_up(numbers.rows / 2, kTile) : numbers.rows;
  const size_t blocks = round_up(rows, kUnit) / kUnit * round_up(numbers.inputs, kBlock) / kBlock;
  std::vector<uint8_t> tiles(blocks * block_bytes(numbers.bits), 255);
  tile_numbers(numbers, gated, set, tiles.data());
  return tiles;
}

void check_tiles(int64_t rows, int64_t inputs, int bits, bool gated) {
  std::vector<int8_t> q(rows * inputs);
  std::vector<uint16_t> scale(rows * inputs / kGroup);
  for (int8_t& one : q) one = static_cast<int8_t>(random_bits() % 16) - 8;
  for (uint16_t& one : scale) one = static_cast<uint16_t>(random_bits());
  const Numbers numbers{q.data(), scale.data(), rows, inputs, bits};
  const auto plain = tiled(numbers, gated, InstructionSet::plain);
  for (InstructionSet set : kSets) {
    if (has(set) && tiled(numbers, gated, set) != plain) {
      std::printf("tiles of %lld rows differ\n", static_cast<long long>(rows));
      ++failures;
    }
  }
}

}  // namespace
}  // namespace mixtura

int main() {
  using namespace mixtura;
  Pool::shared().set_threads(3);
  for (Kind kind : {Kind::float32, Kind::bfloat16}) {
    for (int64_t groups : {0, 1, 15, 33, 3000}) check_search(groups, kind);
  }
  for (int bits : {4, 8}) {
    for (int64_t rows : {2, 34, 96}) {
      for (int64_t inputs : {32, 64, 160}) {
        check_tiles(rows, inputs, bits, false);
        check_tiles(rows, inputs, bits, true);
      }
    }
  }
  std::printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
  return failures != 0;
}
