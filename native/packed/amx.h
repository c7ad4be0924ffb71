// Products of bf16 rows with packed weights, which are widened to bf16, in Intel's AMX tiles.
#pragma once

#include <cstddef>
#include <cstdint>

#include "machine/amx.h"
#include "packed/format.h"
#include "packed/rows.h"

namespace mixtura {

// Rows rounded to bf16, in the layout of tiles: 32 inputs of 16 rows are 1 KB of consecutive
// memory. So the lines of a tile are consecutive, and do not compete for one set of the CPU cache.
struct BfloatRows {
  static constexpr int kTileRows = amx::kTileRows;

  uint16_t* values;
  int inputs;  // padded to whole blocks

  static BfloatRows in(Carver& carver, int64_t rows, int inputs) {
    const int padded = static_cast<int>(round_up(inputs, kBlock));
    return {carver.take<uint16_t>(round_up(rows, kTileRows) * padded), padded};
  }
  // The tile of 16 rows from `first`, a multiple of 16, and of the 32 inputs of `group`. Tiles of
  // later groups follow in memory.
  const uint16_t* tile(int64_t first, int group) const {
    return values + first * inputs + int64_t{group} * kTileRows * kGroup;
  }
  // Writes x[count], which is part of a row and starts at input `from`, the first of a group.
  // Zeros follow up to a whole block.
  void put(int64_t number, int from, const float* x, int count) const;
};

namespace amx {

// Groups of a chunk. A unit is widened and multiplied chunk by chunk.
constexpr int kChunk = 64;
constexpr size_t kPanelBytes = size_t{kChunk} * kUnit * kGroup * 2;  // of a chunk as bf16

// Multiplies a unit with `count` rows from `first`, a multiple of 16, and writes out[row * kUnit +
// channel], which has room for whole tiles of rows. `panel` is scratch for a chunk of the unit as
// bf16. `next` is the unit to prefetch, which is multiplied next.
void multiply(int bits, const uint8_t* unit, int blocks, const uint8_t* next, const BfloatRows& rows,
              int64_t first, int count, uint8_t* panel, float* out);

}  // namespace amx
}  // namespace mixtura
