// The formats of packed weights, which docs/packed.md describes. The Python reference is
// src/mixtura/kernels/packed/tiles.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mixtura {

constexpr int kGroup = 32;     // consecutive inputs that share a scale
constexpr int kTile = 16;      // output channels of a tile, with four bytes of each in 64
constexpr int kUnit = 32;      // output channels of a unit: two tiles
constexpr int kBlock = 64;     // inputs of a block; a unit is stored block by block
constexpr int kScaleBytes = kUnit * (kBlock / kGroup) * 2;

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

constexpr size_t block_bytes(int bits) { return kScaleBytes + kUnit * kBlock * bits / 8; }

// A packed weight matrix. `outputs` and `inputs` do not count the padding in storage.
struct Matrix {
  const uint8_t* tiles;
  int outputs;
  int inputs;
  int bits;

  int units() const { return static_cast<int>(round_up(outputs, kUnit) / kUnit); }
  int blocks() const { return static_cast<int>(round_up(inputs, kBlock) / kBlock); }
  size_t unit_bytes() const { return block_bytes(bits) * blocks(); }
  const uint8_t* unit(int number) const { return tiles + number * unit_bytes(); }
  // Added to each quantised weight before storage, so that the stored number is unsigned.
  int offset() const { return bits == 4 ? 8 : 128; }
};

}  // namespace mixtura
