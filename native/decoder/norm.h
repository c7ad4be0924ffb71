// Norms and turns of single rows.
#pragma once

#include <cstdint>

namespace mixtura {

struct Norm {
  enum class Kind : int { none, rms, layer };
  Kind kind = Kind::none;
  const float* weight = nullptr;
  const float* bias = nullptr;  // or null
  float epsilon = 0.0f;

  // May be in place.
  void apply(const float* x, int64_t width, float* out) const;
};

float sum_of_squares(const float* x, int64_t count);

float dot(const float* a, const float* b, int64_t count);

// Turns the pair (i, i + pairs) of a head by the angle whose cosine and sine are at i.
void turn(float* x, const float* cosine, const float* sine, int pairs);

void clip(float* x, int64_t count, float bound);

}  // namespace mixtura
