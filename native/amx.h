// Intel's matrix tiles (AMX): products of bf16 rows with units of packed weights, widened to bf16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "packed.h"
#include "rows.h"

namespace mixtura {

// Rows rounded to bf16, side by side; behind the last row lie enough bytes for a whole tile.
struct BfloatRows {
  uint16_t* values;
  int inputs;  // padded to whole blocks

  static BfloatRows in(Carver& carver, int64_t rows, int inputs) {
    const int padded = static_cast<int>(round_up(inputs, kBlock));
    return {carver.take<uint16_t>((rows + 32) * padded), padded};
  }
  uint16_t* row(int64_t number) const { return values + number * inputs; }
};

namespace amx {

constexpr int kRows = 32;  // rows of one product
constexpr size_t kPanelBytes = kUnit * kBlock * 2;  // of a widened block

// Around the products of one thread.
void configure();
void release();

// count values to bf16, nearest even, and zeros up to a whole block.
void round(const float* x, int count, uint16_t* out);

// A unit as bf16, in pairs of inputs for each of 16 channels.
void widen(int bits, const uint8_t* unit, int blocks, uint8_t* panel);

// out[row * kUnit + channel] of at most kRows rows; reads whole tiles of rows.
void tile(const uint8_t* panel, int blocks, const uint16_t* rows, int stride, int count,
          float* out);

}  // namespace amx
}  // namespace mixtura
