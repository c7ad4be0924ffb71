// The vector loops of attention, compiled once for each instruction set. Before it includes this, a
// file defines its vector type `Vec` in an unnamed namespace.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention/exponential.h"
#include "attention/kernels.h"

#define UNROLL _Pragma("GCC unroll 16")

namespace mixtura {
namespace {

constexpr int kLanes = Vec::kLanes;
constexpr float kNothing = -__builtin_inff();

// The C++ type of the cache's numbers.
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

// Computes kLanes dot products: kHeads queries times kLanes / kHeads keys from `key` on, of which
// `count` exist. As many bytes as the keys have are prefetched from `ahead`. Prefetches alternate
// with products, since many prefetches in a row would wait for each other.
template <Kept kKept, int kHeads, bool kAll>
inline void score_some(const typename Number<kKept>::Type* key, int64_t key_stride, int count,
                       int dim, const float* q, int64_t stride, const uint8_t* ahead,
                       float* scores) {
  using Type = typename Number<kKept>::Type;
  constexpr int kKeys = kLanes / kHeads, kFours = (kKeys + 3) / 4;
  // A round reads kBytes of the keys; after every kEvery keys, a line of 64 bytes is prefetched.
  constexpr int kBytes = kKeys * kLanes * static_cast<int>(sizeof(Type));
  constexpr int kEvery = kBytes >= 64 ? kKeys * 64 / kBytes : kKeys;
  // One pointer serves four keys, since the processor has too few registers for sixteen pointers.
  const Type* four[kFours];
  UNROLL for (int i = 0; i < kFours; ++i) four[i] = key + 4 * i * key_stride;
  const auto at = [&](int p, int c) {
    // From `count` on the last key is read again, and its score is not stored.
    if constexpr (!kAll) return key + (p < count ? p : count - 1) * key_stride + c;
    return four[p / 4] + p % 4 * key_stride + c;
  };
  V sums[kLanes];
  UNROLL for (int i = 0; i < kLanes; ++i) sums[i] = Vec::zero();
  const int whole = dim / kLanes * kLanes;
  for (int c = 0; c < whole; c += kLanes) {
    UNROLL for (int p = 0; p < kKeys; ++p) {
      if (p % kEvery == 0) __builtin_prefetch(ahead + p / kEvery * 64);
      const V k = Vec::load(at(p, c));
      UNROLL for (int head = 0; head < kHeads; ++head) {
        V& sum = sums[head * kKeys + p];
        sum = Vec::fma(k, Vec::load(q + head * stride + c), sum);
      }
    }
    ahead += kBytes;
  }
  if (whole != dim) {
    UNROLL for (int p = 0; p < kKeys; ++p) {
      const V k = Vec::load_some(at(p, whole), dim - whole);
      UNROLL for (int head = 0; head < kHeads; ++head) {
        V& sum = sums[head * kKeys + p];
        sum = Vec::fma(k, Vec::load(q + head * stride + whole), sum);
      }
    }
  }
  alignas(64) float found[kLanes];
  Vec::store(found, Vec::sums(sums));
  UNROLL for (int head = 0; head < kHeads; ++head) {
    UNROLL for (int p = 0; p < kKeys; ++p) {
      if (kAll || p < count) scores[head * kPositions + p] = found[head * kKeys + p];
    }
  }
}

template <Kept kKept, int kHeads>
void score_heads(const Vectors& keys, int count, const float* q, int64_t stride, float* scores,
                 const uint8_t* ahead) {
  constexpr int kKeys = kLanes / kHeads;
  const auto* key = static_cast<const typename Number<kKept>::Type*>(keys.at);
  const int64_t row_bytes = keys.stride * kept_bytes(kKept);
  int first = 0;
  for (; first + kKeys <= count; first += kKeys, key += kKeys * keys.stride) {
    score_some<kKept, kHeads, true>(key, keys.stride, kKeys, keys.dim, q, stride,
                                    ahead + first * row_bytes, scores + first);
  }
  if (first == count) return;
  score_some<kKept, kHeads, false>(key, keys.stride, count - first, keys.dim, q, stride,
                                   ahead + first * row_bytes, scores + first);
}

template <Kept kKept>
void scores_of(const Vectors& keys, int count, const float* q, int64_t stride, int heads,
               float* scores, const uint8_t* ahead) {
  int head = 0;
  const auto next = [&](auto score, int taken) {
    score(keys, count, q + head * stride, stride, scores + head * kPositions, ahead);
    // `ahead` has been prefetched now. Later heads prefetch the keys, which costs nothing because
    // they are in the CPU cache.
    ahead = static_cast<const uint8_t*>(keys.at);
    head += taken;
  };
  while (head + 4 <= heads) next(score_heads<kKept, 4>, 4);
  while (head + 2 <= heads) next(score_heads<kKept, 2>, 2);
  while (head < heads) next(score_heads<kKept, 1>, 1);
}

void scores(const Vectors& keys, int count, const float* q, int64_t stride, int heads, float* out,
            const uint8_t* ahead) {
  switch (keys.kept) {
    case Kept::fp32:
      return scores_of<Kept::fp32>(keys, count, q, stride, heads, out, ahead);
    case Kept::bf16:
      return scores_of<Kept::bf16>(keys, count, q, stride, heads, out, ahead);
    case Kept::int8:
      return scores_of<Kept::int8>(keys, count, q, stride, heads, out, ahead);
  }
}

// Adds weighted values to kVectors vectors of the outputs of kHeads heads, from dim `c` on. If not
// kWhole, there is one vector, of which `some` dims exist.
template <Kept kKept, int kHeads, int kVectors, bool kWhole>
void mix_part(const Vectors& values, int c, int some, int count, const float* weights, float* out,
              int64_t stride, const uint8_t* ahead) {
  using Type = typename Number<kKept>::Type;
  const Type* value = static_cast<const Type*>(values.at) + c;
  const int64_t fetched = ahead == nullptr ? 0 : values.stride * kept_bytes(kKept);
  V sums[kHeads][kVectors];
  UNROLL for (int head = 0; head < kHeads; ++head) {
    UNROLL for (int v = 0; v < kVectors; ++v) {
      sums[head][v] = Vec::load(out + head * stride + c + v * kLanes);
    }
  }
  for (int p = 0; p < count; ++p, value += values.stride) {
    for (int64_t line = 0; line < fetched; line += 64) __builtin_prefetch(ahead + line);
    ahead += fetched;
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
void mix_heads(const Vectors& values, int count, const float* weights, float* out, int64_t stride,
               const uint8_t* ahead) {
  // The most output vectors of a head that fit into registers beside weights and values.
  constexpr int kMost = Vec::kRegisters / 2 / kHeads < 8 ? Vec::kRegisters / 2 / kHeads : 8;
  int c = 0;
  const auto next = [&](auto mix, int vectors) {
    mix(values, c, values.dim - c, count, weights, out, stride, ahead);
    ahead = nullptr;
    c += vectors * kLanes;
  };
  while (c + kMost * kLanes <= values.dim) next(mix_part<kKept, kHeads, kMost, true>, kMost);
  if constexpr (kMost > 4) {
    while (c + 4 * kLanes <= values.dim) next(mix_part<kKept, kHeads, 4, true>, 4);
  }
  while (c + kLanes <= values.dim) next(mix_part<kKept, kHeads, 1, true>, 1);
  if (c < values.dim) next(mix_part<kKept, kHeads, 1, false>, 1);
}

template <Kept kKept>
void mix_of(const Vectors& values, int count, const float* weights, int heads, float* out,
            int64_t stride, const uint8_t* ahead) {
  int head = 0;
  const auto next = [&](auto mix, int taken) {
    mix(values, count, weights + head * kPositions, out + head * stride, stride, ahead);
    ahead = nullptr;
    head += taken;
  };
  while (head + 4 <= heads) next(mix_heads<kKept, 4>, 4);
  while (head + 2 <= heads) next(mix_heads<kKept, 2>, 2);
  while (head < heads) next(mix_heads<kKept, 1>, 1);
}

void mix(const Vectors& values, int count, const float* weights, int heads, float* out,
         int64_t stride, const uint8_t* ahead) {
  switch (values.kept) {
    case Kept::fp32:
      return mix_of<Kept::fp32>(values, count, weights, heads, out, stride, ahead);
    case Kept::bf16:
      return mix_of<Kept::bf16>(values, count, weights, heads, out, stride, ahead);
    case Kept::int8:
      return mix_of<Kept::int8>(values, count, weights, heads, out, stride, ahead);
  }
}

float weigh(float* scores, int begin, int end, float scale, const float* key_scales,
            const float* value_scales, Softmax& softmax) {
  if (begin >= end) {
    for (int p = 0; p < kPositions; ++p) scores[p] = 0.0f;
    return 1.0f;
  }
  if (key_scales != nullptr) {
    for (int p = begin; p < end; ++p) scores[p] *= key_scales[p];
  }
  for (int p = 0; p < begin; ++p) scores[p] = kNothing;
  for (int p = end; p < kPositions; ++p) scores[p] = kNothing;
  V largest = Vec::all(kNothing);
  for (int p = 0; p < kPositions; p += kLanes) {
    const V score = Vec::mul(Vec::load(scores + p), Vec::all(scale));
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

// kLanes numbers of a cached vector from dim `c` on, as floats; 0 beyond the vector's dim.
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
    // Rounds to the nearest integer, ties to even. The product and the sum must not become one
    // fused multiply-add, so this file is compiled with -ffp-contract=off.
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
