// Activation functions as plain loops, which the compiler vectorises for the instruction set of the
// file that includes this.
#pragma once

#include <cstdint>
#include <cstring>

#include "packed/kernels.h"

namespace mixtura {
namespace {

// e^x with an error of at most 2 units in the last place, for x clamped to -87..88.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float turns = x * 1.44269504088896341f;
  // Adding 1.5 * 2^23 rounds to the nearest integer, which is then in the low bits.
  const float shifted = turns + 12582912.0f;
  const float whole = shifted - 12582912.0f;
  // ln 2 is split into two constants, so that x - whole * ln 2 keeps its digits.
  float rest = x - whole * 0.693359375f;
  rest = rest + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * rest + 1.3981999507e-3f;
  p = p * rest + 8.3334519073e-3f;
  p = p * rest + 4.1665795894e-2f;
  p = p * rest + 1.6666665459e-1f;
  p = p * rest + 5.0000001201e-1f;
  p = p * rest * rest + rest + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  // 0x4B400000 are the bits of the float 1.5 * 2^23.
  const int32_t power = (bits - 0x4B400000 + 127) << 23;
  float scale;
  std::memcpy(&scale, &power, 4);
  return p * scale;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

inline float hyperbolic_tangent(float x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

// Abramowitz and Stegun, equation 7.1.26, with an error of at most 1.5e-7.
inline float error_function(float x) {
  const float size = x < 0.0f ? -x : x;
  const float t = 1.0f / (1.0f + 0.3275911f * size);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float y = 1.0f - p * t * exponential(-size * size);
  return x < 0.0f ? -y : y;
}

inline float silu(float x) { return x * sigmoid(x); }

inline float gelu(float x) { return 0.5f * x * (1.0f + error_function(x * 0.70710678118654752f)); }

inline float gelu_tanh(float x) {
  const float inner = 0.79788456080286536f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (1.0f + hyperbolic_tangent(inner));
}

inline float relu(float x) { return x > 0.0f ? x : 0.0f; }

// The activation of gpt-oss: gate * sigmoid(1.702 * gate) * (up + 1), with gate clamped to at most
// 7 and up to -7..7.
inline float clamped(float gate, float up) {
  gate = gate > 7.0f ? 7.0f : gate;
  up = up > 7.0f ? 7.0f : up;
  up = up < -7.0f ? -7.0f : up;
  return gate * sigmoid(1.702f * gate) * (up + 1.0f);
}

template <class Function>
inline void gated_rows(const float* h, int rows, float* a, int64_t stride, Function f) {
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < kTile; ++i) {
      a[row * stride + i] = f(h[row * kUnit + i], h[row * kUnit + kTile + i]);
    }
  }
}

template <class Function>
inline void plain_rows(const float* h, int rows, float* a, int64_t stride, Function f) {
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < kUnit; ++i) a[row * stride + i] = f(h[row * kUnit + i]);
  }
}

inline void activate_rows(Activation kind, const float* h, int rows, float* a, int64_t stride) {
  switch (kind) {
    case Activation::swiglu:
      return gated_rows(h, rows, a, stride, [](float g, float u) { return silu(g) * u; });
    case Activation::swiglu_clamped:
      return gated_rows(h, rows, a, stride, [](float g, float u) { return clamped(g, u); });
    case Activation::geglu:
      return gated_rows(h, rows, a, stride, [](float g, float u) { return gelu(g) * u; });
    case Activation::geglu_tanh:
      return gated_rows(h, rows, a, stride, [](float g, float u) { return gelu_tanh(g) * u; });
    case Activation::gelu:
      return plain_rows(h, rows, a, stride, [](float x) { return gelu(x); });
    case Activation::relu:
      return plain_rows(h, rows, a, stride, [](float x) { return relu(x); });
  }
}

}  // namespace
}  // namespace mixtura
