// The scales of packed weights, chosen by error: the fast twin of kernels/groups.py, in plain loops
// that the compiler turns into vectors.
#pragma once

#include <cstdint>

#include "half.h"
#include "kernels.h"

namespace mixtura {
namespace {

inline float nearest(float value) {
  // 1.5 * 2^23: adding it leaves no bits for a fraction. Ties go to the even number.
  const float shifted = value + 12582912.0f;
  return shifted - 12582912.0f;
}

inline float number_of(float value, const Levels& levels) {
  float number = nearest(value);
  number = number < levels.low ? levels.low : number;
  return number > levels.high ? levels.high : number;
}

struct Fit {
  float wq, qq;  // the products <w, q> and <q, q>, large weights counting more
};

// A group over its weight of the largest size, and how much an error in each weight counts: see
// `_Fit` in kernels/groups.py.
struct Group {
  float w[kGroup], counts[kGroup];

  Group(const float* given, float extreme) {
    float squares = 0.0f;
    for (int i = 0; i < kGroup; ++i) w[i] = given[i] / extreme;
    for (int i = 0; i < kGroup; ++i) squares += w[i] * w[i];
    const float mean = squares / kGroup;
    for (int i = 0; i < kGroup; ++i) {
      const float square = w[i] * w[i];
      counts[i] = mean * mean + 0.03f * (square * square);
    }
  }

  Fit fit(float inverse, const Levels& levels) const {
    // Sixteen sums side by side: the order of one would keep the compiler from vectors.
    float wq[16] = {}, qq[16] = {};
    for (int half = 0; half < kGroup; half += 16) {
      for (int i = 0; i < 16; ++i) {
        const float number = number_of(w[half + i] * inverse, levels);
        const float weighed = counts[half + i] * number;
        wq[i] += w[half + i] * weighed;
        qq[i] += number * weighed;
      }
    }
    Fit whole{0.0f, 0.0f};
    for (int i = 0; i < 16; ++i) {
      whole.wq += wq[i];
      whole.qq += qq[i];
    }
    return whole;
  }
};

// Never 0: what is too small for fp16 would lose weights that its least scale keeps.
inline float within_half(float scale) {
  constexpr float kLeast = 5.9604644775390625e-8f, kMost = 65504.0f;
  float size = scale < 0.0f ? -scale : scale;
  size = size < kLeast ? kLeast : size;
  size = size > kMost ? kMost : size;
  return scale < 0.0f ? -size : size;
}

inline void search_groups(const float* w, int64_t groups, const Levels& levels, int8_t* q,
                          uint16_t* scale) {
  for (int64_t group = 0; group < groups; ++group, w += kGroup, q += kGroup) {
    float least = w[0], most = w[0];
    for (int i = 1; i < kGroup; ++i) {
      least = w[i] < least ? w[i] : least;
      most = w[i] > most ? w[i] : most;
    }
    float extreme = most >= -least ? most : least;
    extreme = extreme == 0.0f ? 1.0f : extreme;
    const Group own(w, extreme);
    float best = 0.0f, kept = -1.0f;
    for (int level = 0; level < levels.count; ++level) {
      const Fit found = own.fit(levels.tried[level], levels);
      // By least squares the error is <w, w> - <w, q>^2 / <q, q>.
      const float explained = found.wq * found.wq / found.qq;
      if (explained > kept) {
        kept = explained;
        best = found.wq / found.qq;
      }
    }
    // The numbers that are nearest under the scale so found have a scale of their own.
    const Fit refined = own.fit(1.0f / (best == 0.0f ? 1.0f : best), levels);
    best = refined.qq > 0.0f ? refined.wq / refined.qq : best;
    scale[group] = to_half(within_half(best * extreme));
    const float rounded = from_half(scale[group]);
    for (int i = 0; i < kGroup; ++i) {
      q[i] = static_cast<int8_t>(static_cast<int32_t>(number_of(w[i] / rounded, levels)));
    }
  }
}

}  // namespace
}  // namespace mixtura
