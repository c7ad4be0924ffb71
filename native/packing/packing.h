// Packing of weights: weights are quantised to numbers and scales, and these are arranged in tiles.
// The Python references are groups.py and tiles.py in src/mixtura/kernels/packed/.
#pragma once

#include "gguf/blocks.h"
#include "machine/cpu.h"
#include "machine/pool.h"
#include "packed/format.h"

namespace mixtura {

// The scales that are tried for each group of 32 weights: with level t, the weight of the largest
// size becomes t before rounding.
struct Levels {
  const float* tried;
  int count;
  float low, high;  // range of the numbers
  float bound;      // the largest size of a weight that is accepted
};

// The type of unpacked weights.
enum class Kind : int { float32, bfloat16 };

constexpr int64_t bytes_of(Kind kind) { return kind == Kind::float32 ? 4 : 2; }

// Quantised weights: numbers q[rows * inputs], and an fp16 scale for every 32 inputs.
struct Numbers {
  const int8_t* q;
  const uint16_t* scale;
  int64_t rows, inputs;
  int bits;
};

// The kernels of one instruction set. All instruction sets give the same bytes.
struct PackingKernels {
  // Quantises groups of 32 weights. Returns false if a weight is not finite or exceeds the bound.
  bool (*search)(const void* w, Kind kind, int64_t groups, const Levels& levels, int8_t* q,
                 uint16_t* scale);

  // Writes one of the two tiles of a unit, for all its blocks, from `count` rows and padding up to
  // 16. `out` points to the tile in the first block.
  void (*tile)(const Numbers& numbers, int64_t row, int count, uint8_t* out);
};

const PackingKernels& plain_packing();
#if defined(__x86_64__)
const PackingKernels& avx2_packing();
const PackingKernels& avx512_packing();
#endif

// Runs PackingKernels::search in all threads of the pool, and returns the same.
bool quantise_groups(const void* w, Kind kind, int64_t groups, const Levels& levels,
                     InstructionSet set, int8_t* q, uint16_t* scale);

// Unpacks blocks of a K-quant, and quantises the weights as quantise_groups does. The weights are in
// memory only a few blocks at a time.
bool quantise_blocks(GgufKind kind, const uint8_t* blocks, int64_t count, const Levels& levels,
                     InstructionSet set, int8_t* q, uint16_t* scale);

// Writes all tiles. If `gated`, the rows are [gate; up], and a unit has 16 rows of gate and the
// corresponding 16 rows of up.
void tile_numbers(const Numbers& numbers, bool gated, InstructionSet set, uint8_t* out);

}  // namespace mixtura
