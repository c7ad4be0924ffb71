// Kernels in plain C++, for any processor. They are the reference for the kernels of all
// instruction sets.
#include <cmath>
#include <cstring>

#include "packed/activations.h"
#include "packed/half.h"
#include "packed/kernels.h"

namespace mixtura {
namespace {

// The four stored weights of one channel: inputs 4 * quad .. 4 * quad + 3 of a block.
inline void weights_of(int bits, const uint8_t* quants, int quad, int channel, int* four) {
  const int tile = channel / kTile, lane = channel % kTile;
  if (bits == 8) {
    const uint8_t* byte = quants + quad * 128 + tile * 64 + lane * 4;
    for (int j = 0; j < 4; ++j) four[j] = byte[j];
  } else {
    const uint8_t* byte = quants + (quad / 2) * 128 + tile * 64 + lane * 4;
    for (int j = 0; j < 4; ++j) four[j] = quad % 2 ? byte[j] >> 4 : byte[j] & 15;
  }
}

void unit(int bits, int span, const uint8_t* unit, int blocks, const Row* rows, int count,
          const Ahead&, float* out) {
  const size_t step = block_bytes(bits);
  const int groups_of_span = span / kGroup;
  for (int row = 0; row < count; ++row) {
    for (int channel = 0; channel < kUnit; ++channel) {
      const int tile = channel / kTile, lane = channel % kTile;
      float sum = 0.0f, part = 0.0f;
      for (int group = 0; group < 2 * blocks; ++group) {
        const uint8_t* block = unit + (group / 2) * step;
        const uint8_t* quants = block + kScaleBytes;
        int32_t dot = rows[row].offset[group];
        for (int quad = 0; quad < 8; ++quad) {
          int four[4];
          weights_of(bits, quants, (group % 2) * 8 + quad, channel, four);
          for (int j = 0; j < 4; ++j) dot += four[j] * rows[row].q[group * kGroup + quad * 4 + j];
        }
        uint16_t half;
        std::memcpy(&half, block + tile * 64 + (group % 2) * 32 + lane * 2, 2);
        const float scale = from_half(half);
        if (groups_of_span == 1) {
          sum += static_cast<float>(dot) * (scale * rows[row].scale[group]);
          continue;
        }
        part += static_cast<float>(dot) * scale;
        if (group % groups_of_span == groups_of_span - 1 || group == 2 * blocks - 1) {
          sum += part * rows[row].scale[group / groups_of_span];
          part = 0.0f;
        }
      }
      out[row * kUnit + channel] = sum;
    }
  }
}

void widen(const uint8_t* four, int blocks, uint8_t* eight) {
  for (int block = 0; block < blocks; ++block) {
    std::memcpy(eight, four, kScaleBytes);
    for (int pair = 0; pair < 8; ++pair) {
      for (int i = 0; i < 128; ++i) {
        const uint8_t byte = four[kScaleBytes + pair * 128 + i];
        eight[kScaleBytes + pair * 256 + i] = byte & 15;
        eight[kScaleBytes + pair * 256 + 128 + i] = byte >> 4;
      }
    }
    four += block_bytes(4);
    eight += block_bytes(8);
  }
}

void quantise(const float* x, int inputs, int span, int weight_offset, int8_t* q, float* scale,
              int32_t* offset) {
  const int padded = static_cast<int>(round_up(inputs, kBlock));
  for (int start = 0; start < padded; start += span) {
    const int end = start + span < padded ? start + span : padded;
    float largest = 0.0f;
    for (int i = start; i < end && i < inputs; ++i) {
      const float size = x[i] < 0.0f ? -x[i] : x[i];
      // Comparisons with NaN are false, so `largest` becomes NaN, and the output is NaN as well.
      largest = largest >= size ? largest : size;
      if (size != size) break;
    }
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    for (int i = start; i < end; ++i) {
      const bool given = i < inputs && inverse > 0.0f;
      q[i] = given ? static_cast<int8_t>(std::nearbyint(x[i] * inverse)) : 0;
    }
    scale[start / span] = largest / 127.0f;
  }
  for (int group = 0; group < padded / kGroup; ++group) {
    int32_t sum = 0;
    for (int i = 0; i < kGroup; ++i) sum += q[group * kGroup + i];
    offset[group] = -weight_offset * sum;
  }
}

}  // namespace

const Kernels& plain_kernels() {
  static const Kernels kernels{"plain", 4, 1 << 30, unit, widen, quantise, activate_rows};
  return kernels;
}

}  // namespace mixtura
