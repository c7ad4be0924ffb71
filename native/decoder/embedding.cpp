#include "decoder/embedding.h"

#include <cstring>

#include "packed/half.h"

namespace mixtura {
namespace {

// Unpacks the 32 inputs of one group of a channel. The channel has 4 bytes in every 128 bytes.
void unpack_group(const uint8_t* bytes, int bits, float scale, float* out) {
  for (int i = 0; i < kGroup; ++i) {
    const int line = bits == 4 ? i / 8 : i / 4;
    const int byte = bytes[line * 2 * kTile * 4 + i % 4];
    const int q = bits == 8 ? byte - 128 : (i % 8 < 4 ? byte & 15 : byte >> 4) - 8;
    out[i] = static_cast<float>(q) * scale;
  }
}

}  // namespace

void unpack_row(const Matrix& matrix, int64_t row, float factor, float* out) {
  const uint8_t* unit = matrix.unit(static_cast<int>(row / kUnit));
  const int tile = static_cast<int>(row % kUnit / kTile), channel = static_cast<int>(row % kTile);
  const int64_t group_bytes = int64_t{kUnit} * kGroup * matrix.bits / 8;
  for (int first = 0; first < matrix.inputs; first += kGroup) {
    const uint8_t* block = unit + first / kBlock * block_bytes(matrix.bits);
    const int group = first % kBlock / kGroup;
    uint16_t half;
    std::memcpy(&half, block + tile * 64 + group * 32 + channel * 2, 2);
    const uint8_t* bytes = block + kScaleBytes + group * group_bytes + (tile * kTile + channel) * 4;
    float values[kGroup];
    unpack_group(bytes, matrix.bits, from_half(half), values);
    const int left = matrix.inputs - first;
    for (int i = 0; i < (left < kGroup ? left : kGroup); ++i) out[first + i] = values[i] * factor;
  }
}

}  // namespace mixtura
