// The packed formats: see docs/packed.md, and the twin in Python, kernels/packed/tiles.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mixtura {

constexpr int kGroup = 32;     // consecutive inputs that share a scale
constexpr int kTile = 16;      // output channels side by side: 64 bytes, four inputs of each
constexpr int kUnit = 32;      // output channels stored together: two tiles
constexpr int kBlock = 64;     // inputs of a unit that are stored together
constexpr int kScaleBytes = kUnit * (kBlock / kGroup) * 2;

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

constexpr size_t block_bytes(int bits) { return kScaleBytes + kUnit * kBlock * bits / 8; }

// A weight of a linear map in tiles: `outputs` and `inputs` as they are, padded in storage.
struct Matrix {
  const uint8_t* tiles;
  int outputs;
  int inputs;
  int bits;

  int units() const { return static_cast<int>(round_up(outputs, kUnit) / kUnit); }
  int blocks() const { return static_cast<int>(round_up(inputs, kBlock) / kBlock); }
  size_t unit_bytes() const { return block_bytes(bits) * blocks(); }
  const uint8_t* unit(int number) const { return tiles + number * unit_bytes(); }
  // What is added to a weight in storage, so that it is unsigned.
  int offset() const { return bits == 4 ? 8 : 128; }
};

}  // namespace mixtura
