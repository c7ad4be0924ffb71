// Conversions between fp32, fp16 and bf16, for any processor.
#pragma once

#include <cstdint>
#include <cstring>

namespace mixtura {
namespace {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 31, fraction = half & 1023;
  if (exponent == 31) return from_bits(sign | 0x7f800000 | fraction << 13);
  if (exponent != 0) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
  // Subnormal: fraction * 2^-24, exact in fp32.
  const float size = static_cast<float>(fraction) * 5.9604644775390625e-8f;
  return sign ? -size : size;
}

// Rounds to the nearest number, ties to even. The value must be within the range of fp16.
inline uint16_t to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t size = bits & 0x7fffffff;
  if (size < 0x38800000) {
    // The result is subnormal, and its last bit is worth 2^-24. So is the last bit of an fp32 from
    // 1/2 to 1, so that adding 1/2 rounds correctly.
    const float aligned = from_bits(size) + 0.5f;
    uint32_t whole;
    std::memcpy(&whole, &aligned, 4);
    return sign | static_cast<uint16_t>(whole - 0x3f000000);
  }
  const uint32_t rounded = size + 0xfff + (size >> 13 & 1);
  return sign | static_cast<uint16_t>((rounded - 0x38000000) >> 13);
}

inline float from_bfloat(uint16_t half) { return from_bits(static_cast<uint32_t>(half) << 16); }

// Rounds to the nearest number, ties to even. NaN stays NaN.
inline uint16_t to_bfloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 64);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace
}  // namespace mixtura
