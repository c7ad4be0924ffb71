// Attention's loops over vectors, compiled once for each instruction set: the file that includes
// this has defined `Vec` before, in its own unnamed namespace.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention_exponential.h"
#include "attention_kernels.h"

#define UNROLL _Pragma("GCC unroll 16")

namespace mixtura {
namespace {

constexpr int kLanes = Vec::kLanes;
constexpr float kNothing = -__builtin_inff();

// Numbers at `at`, as what they are kept as.
template <Kept kKept>
struct Number;
template <>
struct Number<Kept::fp32> {
  using Type = float;
};
template <>
struct Number<Kept::bf16> {
  using Type = uint16_t;
};
template <>
struct Number<Kept::int8> {
  using Type = int8_t;
};

// Of kLanes dot products at once: kHeads queries with kLanes / kHeads keys.
template <Kept kKept, int kHeads>
void score_heads(const Vectors& keys, int count, const float* q, int64_t stride, float* scores) {
  using Type = typename Number<kKept>::Type;
  constexpr int kKeys = kLanes / kHeads;
  const int whole = keys.dim / kLanes * kLanes, rest = keys.dim - whole;
  for (int first = 0; first < count; first += kKeys) {
    const Type* key[kKeys];
    UNROLL for (int p = 0; p < kKeys; ++p) {
      // Past the end the last one is read again, and its product not stored.
      const int position = first + p < count ? first + p : count - 1;
      key[p] = static_cast<const Type*>(keys.at) + position * keys.stride;
    }
    V sums[kLanes];
    UNROLL for (int i = 0; i < kLanes; ++i) sums[i] = Vec::zero();
    for (int c = 0; c < whole; c += kLanes) {
      UNROLL for (int p = 0; p < kKeys; ++p) {
        const V k = Vec::load(key[p] + c);
        UNROLL for (int head = 0; head < kHeads; ++head) {
          V& sum = sums[head * kKeys + p];
          sum = Vec::fma(k, Vec::load(q + head * stride + c), sum);
        }
      }
    }
    if (rest != 0) {
      UNROLL for (int p = 0; p < kKeys; ++p) {
        const V k = Vec::load_some(key[p] + whole, rest);
        UNROLL for (int head = 0; head < kHeads; ++head) {
          V& sum = sums[head * kKeys + p];
          sum = Vec::fma(k, Vec::load(q + head * stride + whole), sum);
        }
      }
    }
    alignas(64) float found[kLanes];
    Vec::store(found, Vec::sums(sums));
    const int kept = count - first < kKeys ? count - first : kKeys;
    UNROLL for (int head = 0; head < kHeads; ++head) {
      std::memcpy(scores + head * kPositions + first, found + head * kKeys, kept * sizeof(float));
    }
  }
}

template <Kept kKept>
void scores_of(const Vectors& keys, int count, const float* q, int64_t stride, int heads,
               float* scores) {
  int head = 0;
  for (; head + 4 <= heads; head += 4) {
    score_heads<kKept, 4>(keys, count, q + head * stride, stride, scores + head * kPositions);
  }
  for (; head + 2 <= heads; head += 2) {
    score_heads<kKept, 2>(keys, count, q + head * stride, stride, scores + head * kPositions);
  }
  for (; head < heads; ++head) {
    score_heads<kKept, 1>(keys, count, q + head * stride, stride, scores + head * kPositions);
  }
}

void scores(const Vectors& keys, int count, const float* q, int64_t stride, int heads,
            float* out) {
  switch (keys.kept) {
    case Kept::fp32:
      return scores_of<Kept::fp32>(keys, count, q, stride, heads, out);
    case Kept::bf16:
      return scores_of<Kept::bf16>(keys, count, q, stride, heads, out);
    case Kept::int8:
      return scores_of<Kept::int8>(keys, count, q, stride, heads, out);
  }
}

// kVectors of the outputs of kHeads, from dim `c` on; of the last vector `some` dims exist.
template <Kept kKept, int kHeads, int kVectors, bool kWhole>
void mix_part(const Vectors& values, int c, int some, int count, const float* weights, float* out,
              int64_t stride) {
  using Type = typename Number<kKept>::Type;
  const Type* value = static_cast<const Type*>(values.at) + c;
  V sums[kHeads][kVectors];
  UNROLL for (int head = 0; head < kHeads; ++head) {
    UNROLL for (int v = 0; v < kVectors; ++v) {
      sums[head][v] = Vec::load(out + head * stride + c + v * kLanes);
    }
  }
  for (int p = 0; p < count; ++p, value += values.stride) {
    V weight[kHeads];
    UNROLL for (int head = 0; head < kHeads; ++head) {
      weight[head] = Vec::all(weights[head * kPositions + p]);
    }
    UNROLL for (int v = 0; v < kVectors; ++v) {
      const V x = kWhole ? Vec::load(value + v * kLanes) : Vec::load_some(value, some);
      UNROLL for (int head = 0; head < kHeads; ++head) {
        sums[head][v] = Vec::fma(weight[head], x, sums[head][v]);
      }
    }
  }
  UNROLL for (int head = 0; head < kHeads; ++head) {
    UNROLL for (int v = 0; v < kVectors; ++v) {
      Vec::store(out + head * stride + c + v * kLanes, sums[head][v]);
    }
  }
}

template <Kept kKept, int kHeads>
void mix_heads(const Vectors& values, int count, const float* weights, float* out,
               int64_t stride) {
  // What fits into registers besides weights and values.
  constexpr int kMost = Vec::kRegisters / 2 / kHeads < 8 ? Vec::kRegisters / 2 / kHeads : 8;
  int c = 0;
  for (; c + kMost * kLanes <= values.dim; c += kMost * kLanes) {
    mix_part<kKept, kHeads, kMost, true>(values, c, 0, count, weights, out, stride);
  }
  if constexpr (kMost > 4) {
    for (; c + 4 * kLanes <= values.dim; c += 4 * kLanes) {
      mix_part<kKept, kHeads, 4, true>(values, c, 0, count, weights, out, stride);
    }
  }
  for (; c + kLanes <= values.dim; c += kLanes) {
    mix_part<kKept, kHeads, 1, true>(values, c, 0, count, weights, out, stride);
  }
  if (c < values.dim) {
    mix_part<kKept, kHeads, 1, false>(values, c, values.dim - c, count, weights, out, stride);
  }
}

template <Kept kKept>
void mix_of(const Vectors& values, int count, const float* weights, int heads, float* out,
            int64_t stride) {
  int head = 0;
  for (; head + 4 <= heads; head += 4) {
    mix_heads<kKept, 4>(values, count, weights + head * kPositions, out + head * stride, stride);
  }
  for (; head + 2 <= heads; head += 2) {
    mix_heads<kKept, 2>(values, count, weights + head * kPositions, out + head * stride, stride);
  }
  for (; head < heads; ++head) {
    mix_heads<kKept, 1>(values, count, weights + head * kPositions, out + head * stride, stride);
  }
}

void mix(const Vectors& values, int count, const float* weights, int heads, float* out,
         int64_t stride) {
  switch (values.kept) {
    case Kept::fp32:
      return mix_of<Kept::fp32>(values, count, weights, heads, out, stride);
    case Kept::bf16:
      return mix_of<Kept::bf16>(values, count, weights, heads, out, stride);
    case Kept::int8:
      return mix_of<Kept::int8>(values, count, weights, heads, out, stride);
  }
}

float weigh(float* scores, int begin, int end, float scale, const float* key_scales,
            const float* value_scales, Softmax& softmax) {
  if (begin >= end) {
    for (int p = 0; p < kPositions; ++p) scores[p] = 0.0f;
    return 1.0f;
  }
  for (int p = 0; p < begin; ++p) scores[p] = kNothing;
  for (int p = end; p < kPositions; ++p) scores[p] = kNothing;
  V largest = Vec::all(kNothing);
  for (int p = 0; p < kPositions; p += kLanes) {
    // What is not seen stays minus infinity, as no scale of the cache is zero there or NaN.
    V score = Vec::mul(Vec::load(scores + p), Vec::all(scale));
    if (key_scales != nullptr) {
      score = Vec::load(scores + p);
      alignas(64) float own[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        own[i] = p + i >= begin && p + i < end ? scale * key_scales[p + i] : 1.0f;
      }
      score = Vec::mul(score, Vec::load(own));
    }
    Vec::store(scores + p, score);
    largest = Vec::larger(largest, score);
  }
  const float before = softmax.largest, here = Vec::largest(largest);
  const float now = here > before ? here : before;
  V sum = Vec::zero();
  for (int p = 0; p < kPositions; p += kLanes) {
    const V weight = exponential(Vec::add(Vec::load(scores + p), Vec::all(-now)));
    Vec::store(scores + p, weight);
    sum = Vec::add(sum, weight);
  }
  if (value_scales != nullptr) {
    for (int p = begin; p < end; ++p) scores[p] *= value_scales[p];
  }
  alignas(64) float rescaled[kLanes];
  Vec::store(rescaled, exponential(Vec::all(before - now)));
  softmax.largest = now;
  softmax.sum = softmax.sum * rescaled[0] + Vec::sum(sum);
  return rescaled[0];
}

void multiply(float* x, int dim, float factor) {
  for (int c = 0; c < dim; c += kLanes) {
    Vec::store(x + c, Vec::mul(Vec::load(x + c), Vec::all(factor)));
  }
}

// A vector of the cache from dim `c` on, zero past its end.
template <Kept kKept>
inline V widened(const Vectors& from, int position, int c) {
  const auto* x = static_cast<const typename Number<kKept>::Type*>(from.at);
  x += position * from.stride + c;
  if (c + kLanes <= from.dim) return Vec::load(x);
  return c < from.dim ? Vec::load_some(x, from.dim - c) : Vec::zero();
}

template <Kept kKept>
void pack_keys_of(const Vectors& keys, int count, const float* scales, float* packed) {
  for (int first = 0; first < kPositions; first += kLanes) {
    for (int c = 0; c < keys.dim; c += kLanes) {
      V square[kLanes];
      UNROLL for (int p = 0; p < kLanes; ++p) {
        const int position = first + p;
        square[p] = Vec::zero();
        if (position < count) {
          square[p] = widened<kKept>(keys, position, c);
          if (scales != nullptr) square[p] = Vec::mul(square[p], Vec::all(scales[position]));
        }
      }
      Vec::transpose(square);
      const int rows = keys.dim - c < kLanes ? keys.dim - c : kLanes;
      for (int i = 0; i < rows; ++i) Vec::store(packed + (c + i) * kPositions + first, square[i]);
    }
  }
}

void pack_keys(const Vectors& keys, int count, const float* scales, float* packed) {
  switch (keys.kept) {
    case Kept::fp32:
      return pack_keys_of<Kept::fp32>(keys, count, scales, packed);
    case Kept::bf16:
      return pack_keys_of<Kept::bf16>(keys, count, scales, packed);
    case Kept::int8:
      return pack_keys_of<Kept::int8>(keys, count, scales, packed);
  }
}

template <Kept kKept>
void pack_values_of(const Vectors& values, int count, const float* scales, float* packed) {
  const int columns = padded(values.dim);
  for (int p = 0; p < kPositions; ++p, packed += columns) {
    for (int c = 0; c < columns; c += kLanes) {
      V x = Vec::zero();
      if (p < count) {
        x = widened<kKept>(values, p, c);
        if (scales != nullptr) x = Vec::mul(x, Vec::all(scales[p]));
      }
      Vec::store(packed + c, x);
    }
  }
}

void pack_values(const Vectors& values, int count, const float* scales, float* packed) {
  switch (values.kept) {
    case Kept::fp32:
      return pack_values_of<Kept::fp32>(values, count, scales, packed);
    case Kept::bf16:
      return pack_values_of<Kept::bf16>(values, count, scales, packed);
    case Kept::int8:
      return pack_values_of<Kept::int8>(values, count, scales, packed);
  }
}

template <int kRows, int kVectors>
void product_tile(const float* a, int64_t a_stride, int inner, const float* b, int columns,
                  const float* factor, float* c) {
  V sums[kRows][kVectors];
  UNROLL for (int row = 0; row < kRows; ++row) {
    UNROLL for (int v = 0; v < kVectors; ++v) {
      sums[row][v] = factor == nullptr ? Vec::zero()
                                       : Vec::mul(Vec::load(c + row * columns + v * kLanes),
                                                  Vec::all(factor[row]));
    }
  }
  for (int i = 0; i < inner; ++i, b += columns) {
    V right[kVectors];
    UNROLL for (int v = 0; v < kVectors; ++v) right[v] = Vec::load(b + v * kLanes);
    UNROLL for (int row = 0; row < kRows; ++row) {
      const V left = Vec::all(a[row * a_stride + i]);
      UNROLL for (int v = 0; v < kVectors; ++v) {
        sums[row][v] = Vec::fma(left, right[v], sums[row][v]);
      }
    }
  }
  UNROLL for (int row = 0; row < kRows; ++row) {
    UNROLL for (int v = 0; v < kVectors; ++v) {
      Vec::store(c + row * columns + v * kLanes, sums[row][v]);
    }
  }
}

template <int kVectors>
void product_columns(const float* a, int64_t a_stride, int rows, int inner, const float* b,
                     int columns, const float* factor, float* c) {
  for (; rows >= 6; rows -= 6, a += 6 * a_stride, c += 6 * columns) {
    product_tile<6, kVectors>(a, a_stride, inner, b, columns, factor, c);
    if (factor != nullptr) factor += 6;
  }
  for (; rows > 0; --rows, a += a_stride, c += columns) {
    product_tile<1, kVectors>(a, a_stride, inner, b, columns, factor, c);
    if (factor != nullptr) ++factor;
  }
}

void product(const float* a, int64_t a_stride, int rows, int inner, const float* b, int columns,
             const float* factor, float* c) {
  constexpr int kMost = Vec::kRegisters >= 32 ? 4 : 2;
  int column = 0;
  for (; column + kMost * kLanes <= columns; column += kMost * kLanes) {
    product_columns<kMost>(a, a_stride, rows, inner, b + column, columns, factor, c + column);
  }
  for (; column < columns; column += kLanes) {
    product_columns<1>(a, a_stride, rows, inner, b + column, columns, factor, c + column);
  }
}

inline uint16_t rounded_bfloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
  return static_cast<uint16_t>((value == value ? rounded : bits | 0x400000) >> 16);
}

float keep(const float* x, int dim, Kept kept, void* at) {
  if (kept == Kept::fp32) {
    std::memcpy(at, x, dim * sizeof(float));
    return 0.0f;
  }
  if (kept == Kept::bf16) {
    auto* out = static_cast<uint16_t*>(at);
    for (int c = 0; c < dim; ++c) out[c] = rounded_bfloat(x[c]);
    return 0.0f;
  }
  auto* out = static_cast<int8_t*>(at);
  float size = 0.0f;
  for (int c = 0; c < dim; ++c) {
    const float own = __builtin_fabsf(x[c]);
    size = own > size ? own : size;
  }
  const float inverse = size > 0.0f ? 127.0f / size : 0.0f;
  for (int c = 0; c < dim; ++c) {
    // To the nearest, ties to even: no file that includes this may fuse the two.
    const float scaled = x[c] * inverse;
    out[c] = static_cast<int8_t>(static_cast<int32_t>((scaled + 12582912.0f) - 12582912.0f));
  }
  return size / 127.0f;
}

constexpr AttentionKernels kernels_named(const char* name) {
  return {name,      scores,      mix,     weigh, multiply,
          pack_keys, pack_values, product, keep};
}

}  // namespace
}  // namespace mixtura

#undef UNROLL
