#include "attention_amx.h"

#include "attention_vec512.h"

#include "attention_exponential.h"

#define UNROLL _Pragma("GCC unroll 16")

namespace mixtura::amx {
namespace {

constexpr int kWeights = kPositions * kGroupQueries;  // of a group
constexpr int kTileBytes = 1024;

inline __m256i rounded(V x) { return (__m256i)_mm512_cvtneps_pbh(x); }

// Two vectors as pairs of bf16.
inline __m512i pairs(V first, V second) {
  const __m512i low = _mm512_cvtepu16_epi32(rounded(first));
  const __m512i high = _mm512_cvtepu16_epi32(rounded(second));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// Up to 16 numbers of a vector of the cache, as bf16.
inline __m256i kept_line(const Vectors& from, int position, int c) {
  const int64_t at = position * from.stride + c;
  const int left = from.dim - c;
  const __mmask16 given = left >= 16 ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
  if (from.kept == Kept::bf16) {
    return _mm256_maskz_loadu_epi16(given, static_cast<const uint16_t*>(from.at) + at);
  }
  const __m128i bytes = _mm_maskz_loadu_epi8(given, static_cast<const int8_t*>(from.at) + at);
  return rounded(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
}

inline __m512i kept_pair(const Vectors& values, int position, int count, int c) {
  if (position >= count) return _mm512_setzero_si512();
  const __m512i first = _mm512_cvtepu16_epi32(kept_line(values, position, c));
  if (position + 1 >= count) return first;
  const __m512i second = _mm512_cvtepu16_epi32(kept_line(values, position + 1, c));
  return _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
}

}  // namespace

void pack_queries(const float* const* q, int dim, uint16_t* packed) {
  for (int line = 0; line < lines(dim); ++line) {
    // Lanes are pairs of dims of one query, then turned.
    V square[16];
    for (int query = 0; query < kGroupQueries; ++query) {
      __m512i both = _mm512_setzero_si512();
      if (q[query] != nullptr) {
        const int left = dim - line * kLine;
        const uint32_t given = left >= kLine ? 0xffffffff : (1u << left) - 1;
        const float* from = q[query] + line * kLine;
        const V low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(given), from);
        const V high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(given >> 16), from + 16);
        both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
      }
      square[query] = _mm512_castsi512_ps(both);
    }
    Vec::transpose(square);
    for (int pair = 0; pair < 16; ++pair) {
      _mm512_storeu_ps(packed + (line * 16 + pair) * 2 * kGroupQueries, square[pair]);
    }
  }
}

void pack_keys(const Vectors& keys, int count, uint16_t* packed) {
  const int width = lines(keys.dim) * kLine;
  for (int position = 0; position < kPositions; ++position, packed += width) {
    for (int c = 0; c < width; c += 16) {
      const __m256i line =
          position < count ? kept_line(keys, position, c) : _mm256_setzero_si256();
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(packed + c), line);
    }
  }
}

void pack_values(const Vectors& values, int count, uint16_t* packed) {
  for (int c = 0; c < lines(values.dim) * kLine; c += 16) {
    for (int first = 0; first < kPositions; first += 32) {
      V square[16];
      UNROLL for (int pair = 0; pair < 16; ++pair) {
        square[pair] = _mm512_castsi512_ps(kept_pair(values, first + 2 * pair, count, c));
      }
      Vec::transpose(square);
      UNROLL for (int dim = 0; dim < 16; ++dim) {
        _mm512_storeu_ps(packed + (c + dim) * kPositions + first, square[dim]);
      }
    }
  }
}

void scores(const uint16_t* keys, int64_t key_stride, int count, const uint16_t* queries,
            int dim_lines, float* scores) {
  const int64_t pitch = key_stride * 2, group = int64_t{dim_lines} * kTileBytes / 2;
  for (int first = 0; first < count; first += 32) {
    const uint16_t* key = keys + first * key_stride;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int line = 0; line < dim_lines; ++line) {
      _tile_loadd(4, key + line * kLine, pitch);
      _tile_loadd(5, key + 16 * key_stride + line * kLine, pitch);
      _tile_loadd(6, queries + line * kTileBytes / 2, 64);
      _tile_loadd(7, queries + group + line * kTileBytes / 2, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 5, 6);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
    float* to = scores + first * kGroupQueries;
    _tile_stored(0, to, 64);
    _tile_stored(1, to + 16 * kGroupQueries, 64);
    _tile_stored(2, to + kWeights, 64);
    _tile_stored(3, to + kWeights + 16 * kGroupQueries, 64);
  }
}

bool weigh(const float* scores, int count, float scale, const float* key_scales,
           const float* value_scales, GroupSoftmax& softmax, uint16_t* weights) {
  const __m512i low = _mm512_loadu_si512(softmax.low), high = _mm512_loadu_si512(softmax.high);
  const bool all = _mm512_cmpgt_epi32_mask(low, _mm512_setzero_si512()) == 0 &&
                   _mm512_cmplt_epi32_mask(high, _mm512_set1_epi32(count)) == 0;
  const V nothing = Vec::all(-__builtin_inff());
  const V before = _mm512_loadu_ps(softmax.largest);
  alignas(64) float seen[kWeights];
  V largest = before;
  for (int p = 0; p < count; ++p) {
    const float own = key_scales == nullptr ? scale : scale * key_scales[p];
    V score = Vec::mul(Vec::load(scores + p * kGroupQueries), Vec::all(own));
    if (!all) {
      const __m512i position = _mm512_set1_epi32(p);
      const __mmask16 sees =
          _mm512_cmple_epi32_mask(low, position) & _mm512_cmplt_epi32_mask(position, high);
      score = _mm512_mask_mov_ps(nothing, sees, score);
    }
    Vec::store(seen + p * kGroupQueries, score);
    largest = Vec::larger(largest, score);
  }
  // A query that has seen nothing yet has no largest score to be relative to.
  const __mmask16 any = _mm512_cmp_ps_mask(largest, nothing, _CMP_NEQ_UQ);
  const V base = _mm512_maskz_mov_ps(any, largest);
  const V negative = Vec::mul(base, Vec::all(-1.0f));
  V sum = Vec::zero();
  for (int p = 0; p < kPositions; p += 2) {
    V pair[2] = {Vec::zero(), Vec::zero()};
    UNROLL for (int i = 0; i < 2; ++i) {
      if (p + i >= count) break;
      pair[i] = exponential(Vec::add(Vec::load(seen + (p + i) * kGroupQueries), negative));
      sum = Vec::add(sum, pair[i]);
      if (value_scales != nullptr) pair[i] = Vec::mul(pair[i], Vec::all(value_scales[p + i]));
    }
    _mm512_storeu_si512(weights + p * kGroupQueries, pairs(pair[0], pair[1]));
  }
  // e^-inf is 0 here, and e^0 exactly 1.
  const V factor = exponential(Vec::add(before, negative));
  Vec::store(softmax.factor, factor);
  Vec::store(softmax.largest, largest);
  Vec::store(softmax.sum, Vec::fma(_mm512_loadu_ps(softmax.sum), factor, sum));
  return _mm512_cmp_ps_mask(factor, Vec::all(1.0f), _CMP_NEQ_UQ) != 0;
}

void multiply(float* mixed, int dim_lines, const float* factor) {
  const V own = Vec::load(factor);
  for (int dim = 0; dim < dim_lines * kLine; ++dim, mixed += kGroupQueries) {
    Vec::store(mixed, Vec::mul(Vec::load(mixed), own));
  }
}

void mix(const uint16_t* values, int dim_lines, const uint16_t* weights, float* mixed) {
  const int64_t group = int64_t{dim_lines} * kLine * kGroupQueries;
  for (int dim = 0; dim < dim_lines * kLine; dim += 32) {
    const uint16_t* value = values + dim * kPositions;
    float* to = mixed + dim * kGroupQueries;
    _tile_loadd(0, to, 64);
    _tile_loadd(1, to + 16 * kGroupQueries, 64);
    _tile_loadd(2, to + group, 64);
    _tile_loadd(3, to + group + 16 * kGroupQueries, 64);
    UNROLL for (int first = 0; first < kPositions; first += 32) {
      _tile_loadd(4, value + first, kPositions * 2);
      _tile_loadd(5, value + 16 * kPositions + first, kPositions * 2);
      _tile_loadd(6, weights + first * kGroupQueries, 64);
      _tile_loadd(7, weights + kWeights + first * kGroupQueries, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 5, 6);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, to, 64);
    _tile_stored(1, to + 16 * kGroupQueries, 64);
    _tile_stored(2, to + group, 64);
    _tile_stored(3, to + group + 16 * kGroupQueries, 64);
  }
}

void put(const float* mixed, int dim, const float* factor, float* const* out) {
  for (int c = 0; c < dim; c += 16) {
    V square[16];
    UNROLL for (int i = 0; i < 16; ++i) square[i] = Vec::load(mixed + (c + i) * kGroupQueries);
    Vec::transpose(square);
    const __mmask16 given = dim - c >= 16 ? 0xffff : (1u << (dim - c)) - 1;
    for (int query = 0; query < kGroupQueries; ++query) {
      if (out[query] == nullptr) continue;
      const V scaled = Vec::mul(square[query], Vec::all(factor[query]));
      _mm512_mask_storeu_ps(out[query] + c, given, scaled);
    }
  }
}

}  // namespace mixtura::amx
