// The loops of unpacking, compiled once for each instruction set. Compilers vectorise the loops
// over 16 or 32 weights. No product and sum may be fused: the results equal those of numpy.
#pragma once

#include <cstdint>
#include <cstring>

#include "gguf/blocks.h"
#include "packed/half.h"

namespace mixtura {
namespace {

inline float half_at(const uint8_t* bytes) {
  uint16_t half;
  std::memcpy(&half, bytes, sizeof half);
  return from_half(half);
}

// The 8 scales and 8 minimums of Q4_K and Q5_K, of 6 bits each, in 12 bytes.
struct ScalesAndMinimums {
  uint8_t scale[8], minimum[8];

  explicit ScalesAndMinimums(const uint8_t* bytes) {
    for (int i = 0; i < 4; ++i) {
      scale[i] = bytes[i] & 63;
      minimum[i] = bytes[4 + i] & 63;
      scale[4 + i] = (bytes[8 + i] & 15) | (bytes[i] >> 6) << 4;
      minimum[4 + i] = bytes[8 + i] >> 4 | (bytes[4 + i] >> 6) << 4;
    }
  }
};

// 16 groups of 16 weights: a scale and a minimum of 4 bits in a byte each; 64 bytes of numbers of 2
// bits; the fp16 factors of scales and of minimums. Byte i of a half of 32 bytes has the weights i,
// 32 + i, 64 + i and 96 + i of 128.
inline void unpack_q2_k(const uint8_t* block, float* out) {
  const uint8_t* numbers = block + 16;
  const float of_scales = half_at(block + 80), of_minimums = half_at(block + 82);
  for (int group = 0; group < 16; ++group) {
    const float scale = of_scales * static_cast<float>(block[group] & 15);
    const float minimum = of_minimums * static_cast<float>(block[group] >> 4);
    const uint8_t* own = numbers + group / 8 * 32 + group % 2 * 16;
    const int shift = group % 8 / 2 * 2;
    for (int i = 0; i < 16; ++i) {
      out[16 * group + i] = scale * static_cast<float>(own[i] >> shift & 3) - minimum;
    }
  }
}

// 32 bytes of highest bits, 64 bytes of lower bits in the order of Q2_K, 16 scales of 6 bits in 12
// bytes, and their fp16 factor. A number is 4 less where its highest bit is 0.
inline void unpack_q3_k(const uint8_t* block, float* out) {
  const uint8_t *numbers = block + 32, *scales = block + 96;
  const float factor = half_at(block + 108);
  for (int group = 0; group < 16; ++group) {
    const int low = group < 8 ? scales[group] & 15 : scales[group - 8] >> 4;
    const int high = scales[8 + group % 4] >> group / 4 * 2 & 3;
    const float scale = factor * static_cast<float>((low | high << 4) - 32);
    const uint8_t* own = numbers + group / 8 * 32 + group % 2 * 16;
    const uint8_t* highest = block + group % 2 * 16;
    const int shift = group % 8 / 2 * 2, bit = group / 2;
    for (int i = 0; i < 16; ++i) {
      const int number = (own[i] >> shift & 3) - 4 + (highest[i] >> bit & 1) * 4;
      out[16 * group + i] = scale * static_cast<float>(number);
    }
  }
}

// 8 groups of 32 weights: the fp16 factors of scales and of minimums, scales and minimums, and 128
// bytes of numbers of 4 bits. The lower bits of 32 bytes are a group, the upper bits the next one.
inline void unpack_q4_k(const uint8_t* block, float* out) {
  const float of_scales = half_at(block), of_minimums = half_at(block + 2);
  const ScalesAndMinimums found(block + 4);
  for (int group = 0; group < 8; ++group) {
    const float scale = of_scales * static_cast<float>(found.scale[group]);
    const float minimum = of_minimums * static_cast<float>(found.minimum[group]);
    const uint8_t* own = block + 16 + group / 2 * 32;
    const int shift = group % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      out[32 * group + i] = scale * static_cast<float>(own[i] >> shift & 15) - minimum;
    }
  }
}

// As Q4_K, with 32 bytes of fifth bits before the numbers: bit g of byte i is that of weight i of
// group g.
inline void unpack_q5_k(const uint8_t* block, float* out) {
  const float of_scales = half_at(block), of_minimums = half_at(block + 2);
  const ScalesAndMinimums found(block + 4);
  const uint8_t* fifth = block + 16;
  for (int group = 0; group < 8; ++group) {
    const float scale = of_scales * static_cast<float>(found.scale[group]);
    const float minimum = of_minimums * static_cast<float>(found.minimum[group]);
    const uint8_t* own = block + 48 + group / 2 * 32;
    const int shift = group % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int number = (own[i] >> shift & 15) | (fifth[i] >> group & 1) << 4;
      out[32 * group + i] = scale * static_cast<float>(number) - minimum;
    }
  }
}

// 128 bytes of lower 4 bits, 64 bytes of upper 2 bits, 16 int8 scales for 16 weights each, and
// their fp16 factor. A number is 32 less than its 6 bits.
inline void unpack_q6_k(const uint8_t* block, float* out) {
  const float factor = half_at(block + 208);
  for (int part = 0; part < 8; ++part) {
    const uint8_t* lower = block + part / 4 * 64 + part % 2 * 32;
    const uint8_t* upper = block + 128 + part / 4 * 32;
    const int lower_shift = part % 4 / 2 * 4, upper_shift = part % 4 * 2;
    for (int half = 0; half < 2; ++half) {
      const auto own = static_cast<int8_t>(block[192 + 2 * part + half]);
      const float scale = factor * static_cast<float>(own);
      for (int i = 16 * half; i < 16 * half + 16; ++i) {
        const int number = (lower[i] >> lower_shift & 15) | (upper[i] >> upper_shift & 3) << 4;
        out[32 * part + i] = scale * static_cast<float>(number - 32);
      }
    }
  }
}

template <void (*unpack)(const uint8_t*, float*)>
inline void unpack_all(const uint8_t* blocks, int64_t size, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) unpack(blocks + i * size, out + i * kBlockWeights);
}

void unpack_of_kind(GgufKind kind, const uint8_t* blocks, int64_t count, float* out) {
  const int64_t size = bytes_of(kind);
  switch (kind) {
    case GgufKind::q2_k: return unpack_all<unpack_q2_k>(blocks, size, count, out);
    case GgufKind::q3_k: return unpack_all<unpack_q3_k>(blocks, size, count, out);
    case GgufKind::q4_k: return unpack_all<unpack_q4_k>(blocks, size, count, out);
    case GgufKind::q5_k: return unpack_all<unpack_q5_k>(blocks, size, count, out);
    case GgufKind::q6_k: return unpack_all<unpack_q6_k>(blocks, size, count, out);
  }
}

}  // namespace
}  // namespace mixtura
