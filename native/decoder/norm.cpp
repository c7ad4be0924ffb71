#include "decoder/norm.h"

#include <cmath>

namespace mixtura {
namespace {

// Partial sums of one sum, as many as the widest vector has lanes: the compiler must not reorder a
// single sum, so it could not use vectors for it.
constexpr int kSums = 16;

template <class Term>
float sum_of(int64_t count, const Term& term) {
  float sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (int lane = 0; lane < kSums; ++lane) sums[lane] += term(i + lane);
  }
  for (int lane = 0; i < count; ++i, ++lane) sums[lane] += term(i);
  for (int half = kSums / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  }
  return sums[0];
}

}  // namespace

float sum_of_squares(const float* x, int64_t count) {
  return sum_of(count, [x](int64_t i) { return x[i] * x[i]; });
}

float dot(const float* a, const float* b, int64_t count) {
  return sum_of(count, [a, b](int64_t i) { return a[i] * b[i]; });
}

void Norm::apply(const float* x, int64_t width, float* out) const {
  if (kind == Kind::none) {
    for (int64_t i = 0; i < width; ++i) out[i] = x[i];
    return;
  }
  const float share = 1.0f / static_cast<float>(width);
  float mean = 0.0f, square = 0.0f;
  if (kind == Kind::rms) {
    square = sum_of_squares(x, width) * share;
  } else {
    mean = sum_of(width, [x](int64_t i) { return x[i]; }) * share;
    square = sum_of(width, [x, mean](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) * share;
  }
  const float factor = 1.0f / std::sqrt(square + epsilon);
  if (bias == nullptr) {
    for (int64_t i = 0; i < width; ++i) out[i] = (x[i] - mean) * factor * weight[i];
  } else {
    for (int64_t i = 0; i < width; ++i) out[i] = (x[i] - mean) * factor * weight[i] + bias[i];
  }
}

void rotate(float* x, const float* cosine, const float* sine, int pairs) {
  for (int i = 0; i < pairs; ++i) {
    const float first = x[i], second = x[i + pairs];
    x[i] = first * cosine[i] - second * sine[i];
    x[i + pairs] = second * cosine[i] + first * sine[i];
  }
}

void clip(float* x, int64_t count, float bound) {
  for (int64_t i = 0; i < count; ++i) {
    x[i] = x[i] > bound ? bound : x[i];
    x[i] = x[i] < -bound ? -bound : x[i];
  }
}

}  // namespace mixtura
