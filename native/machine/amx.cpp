#include "machine/amx.h"

#include <immintrin.h>

#include <cstdint>

namespace mixtura::amx {
namespace {

struct alignas(64) Shape {
  uint8_t palette = 1;
  uint8_t start = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

}  // namespace

void configure() {
  Shape shape;
  for (int tile = 0; tile < 8; ++tile) {
    shape.bytes[tile] = 64;
    shape.rows[tile] = kTileRows;
  }
  // The intrinsic reads 64 bytes but declares only 8 of them, so compilers would not store the
  // others. The empty assembly makes them store all 64.
  asm volatile("" : : "r"(&shape) : "memory");
  _tile_loadconfig(&shape);
}

void release() { _tile_release(); }

}  // namespace mixtura::amx
