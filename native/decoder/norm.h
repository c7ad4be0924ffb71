// LayerNorm, RMSNorm, RoPE and clipping of single rows.
#pragma once

#include <cstdint>

namespace mixtura {

struct Norm {
  enum class Kind : int { none, rms, layer };
  Kind kind = Kind::none;
  const float* weight = nullptr;
  const float* bias = nullptr;
  float epsilon = 0.0f;

  // `out` may be x.
  void apply(const float* x, int64_t width, float* out) const;
};

float sum_of_squares(const float* x, int64_t count);

float dot(const float* a, const float* b, int64_t count);

// RoPE: rotates each pair (x[i], x[i + pairs]) by the angle with cosine[i] and sine[i].
void rotate(float* x, const float* cosine, const float* sine, int pairs);

void clip(float* x, int64_t count, float bound);

}  // namespace mixtura
