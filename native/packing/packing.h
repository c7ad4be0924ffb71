// Weights into numbers and scales, and these into tiles: the fast twins of groups.py and
// tiles.py in src/mixtura/kernels/packed/.
#pragma once

#include "machine/cpu.h"
#include "machine/pool.h"
#include "packed/format.h"

namespace mixtura {

// What is tried for every group: the number that the weight of the largest size becomes.
struct Levels {
  const float* tried;
  int count;
  float low, high;  // of the numbers
  float bound;      // of a weight's size: more than that is refused
};

// Of weights as they come from files.
enum class Kind : int { float32, bfloat16 };

constexpr int64_t bytes_of(Kind kind) { return kind == Kind::float32 ? 4 : 2; }

// Numbers q[rows * inputs] and fp16 scales for each 32 inputs.
struct Numbers {
  const int8_t* q;
  const uint16_t* scale;
  int64_t rows, inputs;
  int bits;
};

// What an instruction set implements. All of them give the same bytes.
struct PackingKernels {
  // Numbers and scales of groups of 32 weights. False where one is not finite, or beyond the bound.
  bool (*search)(const void* w, Kind kind, int64_t groups, const Levels& levels, int8_t* q,
                 uint16_t* scale);

  // One of the two tiles of a unit, from its first block on: `count` rows, padded to 16.
  void (*tile)(const Numbers& numbers, int64_t row, int count, uint8_t* out);
};

const PackingKernels& plain_packing();
#if defined(__x86_64__)
const PackingKernels& avx2_packing();
const PackingKernels& avx512_packing();
#endif

// In all threads of the pool. False as `search` says.
bool quantise_groups(const void* w, Kind kind, int64_t groups, const Levels& levels,
                     InstructionSet set, int8_t* q, uint16_t* scale);

// `gated`: rows are [gate; up], and a unit is 16 of gate and the 16 of up that go with them.
void tile_numbers(const Numbers& numbers, bool gated, InstructionSet set, uint8_t* out);

}  // namespace mixtura
