// Intel's matrix tiles (AMX): products of bf16 rows with units of packed weights, widened to bf16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "machine/amx.h"
#include "packed/format.h"
#include "packed/rows.h"

namespace mixtura {

// Rows rounded to bf16 as the tiles take them: 32 inputs of 16 rows are 1 KB in one piece, so that a
// tile's lines come one after the other and do not meet in one set of the cache.
struct BfloatRows {
  static constexpr int kTileRows = amx::kTileRows;

  uint16_t* values;
  int inputs;  // padded to whole blocks

  static BfloatRows in(Carver& carver, int64_t rows, int inputs) {
    const int padded = static_cast<int>(round_up(inputs, kBlock));
    return {carver.take<uint16_t>(round_up(rows, kTileRows) * padded), padded};
  }
  // The tile of 16 rows from `first`, a multiple of 16, at some inputs; those of later inputs follow.
  const uint16_t* tile(int64_t first, int group) const {
    return values + first * inputs + int64_t{group} * kTileRows * kGroup;
  }
  // The part of a row from an input on, which begins a group; zeros up to a whole block.
  void put(int64_t number, int from, const float* x, int count) const;
};

namespace amx {

constexpr int kChunk = 64;  // groups that are widened and multiplied before the next ones
constexpr size_t kPanelBytes = size_t{kChunk} * kUnit * kGroup * 2;  // of a widened chunk

// A unit's channels times `count` rows from `first`, a multiple of 16: out[row * kUnit + channel], of
// whole tiles of rows. A panel holds a chunk of the unit as bf16. `next` is the unit after this one.
void multiply(int bits, const uint8_t* unit, int blocks, const uint8_t* next, const BfloatRows& rows,
              int64_t first, int count, uint8_t* panel, float* out);

}  // namespace amx
}  // namespace mixtura
