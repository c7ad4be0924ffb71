#include "attention/amx.h"

#include "attention/vec512.h"

#define UNROLL _Pragma("GCC unroll 16")

namespace mixtura::amx {
namespace {

using V = Vec::V;

constexpr int kWeights = kBlockPositions * kGroupQueries;  // of a group in a block
constexpr int kTileBytes = 1024;
constexpr int kStep = 32;  // positions in one tile product of weights and values

inline __m256i rounded(V x) { return (__m256i)_mm512_cvtneps_pbh(x); }

// Interleaves two vectors as bf16: first[0], second[0], first[1], second[1], ...
inline __m512i pairs(V first, V second) {
  const __m512i order =
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                       21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

// 16 numbers of a cached vector from dim `c` on, as bf16; 0 beyond the vector's dim.
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

inline void fetch(const uint8_t* ahead, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(ahead + line);
}

// Scores of one group. Each round computes 64 positions, so that four tiles are summed in parallel.
void scores_of_one(const uint16_t* keys, int64_t key_stride, int count, const uint16_t* queries,
                   int dim_lines, const uint8_t* ahead, float* scores) {
  const int64_t pitch = key_stride * 2;
  for (int first = 0; first < count; first += 64) {
    const bool more = first + 32 < count;
    const uint16_t* key = keys + first * key_stride;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int line = 0; line < dim_lines; ++line, key += kLine) {
      _tile_loadd(6, queries + line * kTileBytes / 2, 64);
      _tile_loadd(4, key, pitch);
      _tile_dpbf16ps(0, 4, 6);
      fetch(ahead, kTileBytes);
      _tile_loadd(5, key + 16 * key_stride, pitch);
      _tile_dpbf16ps(1, 5, 6);
      fetch(ahead + kTileBytes, kTileBytes);
      ahead += 2 * kTileBytes;
      if (!more) continue;
      _tile_loadd(4, key + 32 * key_stride, pitch);
      _tile_dpbf16ps(2, 4, 6);
      fetch(ahead, kTileBytes);
      _tile_loadd(5, key + 48 * key_stride, pitch);
      _tile_dpbf16ps(3, 5, 6);
      fetch(ahead + kTileBytes, kTileBytes);
      ahead += 2 * kTileBytes;
    }
    float* to = scores + first * kGroupQueries;
    _tile_stored(0, to, 64);
    _tile_stored(1, to + 16 * kGroupQueries, 64);
    if (!more) continue;
    _tile_stored(2, to + 32 * kGroupQueries, 64);
    _tile_stored(3, to + 48 * kGroupQueries, 64);
  }
}

void scores_of_two(const uint16_t* keys, int64_t key_stride, int count, const uint16_t* queries,
                   int dim_lines, const uint8_t* ahead, float* scores) {
  const int64_t pitch = key_stride * 2, group = int64_t{dim_lines} * kTileBytes / 2;
  for (int first = 0; first < count; first += 32) {
    const uint16_t* key = keys + first * key_stride;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int line = 0; line < dim_lines; ++line) {
      _tile_loadd(4, key + line * kLine, pitch);
      _tile_loadd(6, queries + line * kTileBytes / 2, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, queries + group + line * kTileBytes / 2, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_loadd(5, key + 16 * key_stride + line * kLine, pitch);
      _tile_dpbf16ps(1, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      fetch(ahead, 2 * kTileBytes);
      ahead += 2 * kTileBytes;
    }
    float* to = scores + first * kGroupQueries;
    _tile_stored(0, to, 64);
    _tile_stored(1, to + 16 * kGroupQueries, 64);
    _tile_stored(2, to + kWeights, 64);
    _tile_stored(3, to + kWeights + 16 * kGroupQueries, 64);
  }
}

// Mixed values of one group. Each round computes two lines of dims.
void mix_one(const uint16_t* values, int count, int dim_lines, const uint16_t* weights, bool first,
             float* mixed) {
  const int64_t pitch = int64_t{dim_lines} * kLine * 4;
  constexpr int kHalf = kTileBytes / 2;
  for (int line = 0; line < dim_lines; line += 2) {
    const bool more = line + 1 < dim_lines;
    float* to = mixed + line * kLine;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (!first) {
      _tile_loadd(0, to, pitch);
      _tile_loadd(1, to + 16, pitch);
    }
    if (!first && more) {
      _tile_loadd(2, to + 32, pitch);
      _tile_loadd(3, to + 48, pitch);
    }
    for (int p = 0; p < count; p += kStep) {
      const uint16_t* value = values + (int64_t{p / kStep} * dim_lines + line) * 2 * kHalf;
      _tile_loadd(4, weights + p, kBlockPositions * 2);
      _tile_loadd(5, value, 64);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, value + kHalf, 64);
      _tile_dpbf16ps(1, 4, 6);
      if (!more) continue;
      _tile_loadd(7, value + 2 * kHalf, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_loadd(5, value + 3 * kHalf, 64);
      _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, to, pitch);
    _tile_stored(1, to + 16, pitch);
    if (!more) continue;
    _tile_stored(2, to + 32, pitch);
    _tile_stored(3, to + 48, pitch);
  }
}

void mix_two(const uint16_t* values, int count, int dim_lines, const uint16_t* weights, bool first,
             float* mixed) {
  const int64_t width = int64_t{dim_lines} * kLine, pitch = width * 4;
  constexpr int kHalf = kTileBytes / 2;
  for (int line = 0; line < dim_lines; ++line) {
    float* to = mixed + line * kLine;
    float* other = to + kGroupQueries * width;
    if (first) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {
      _tile_loadd(0, to, pitch);
      _tile_loadd(1, to + 16, pitch);
      _tile_loadd(2, other, pitch);
      _tile_loadd(3, other + 16, pitch);
    }
    for (int p = 0; p < count; p += kStep) {
      const uint16_t* value = values + (int64_t{p / kStep} * dim_lines + line) * 2 * kHalf;
      _tile_loadd(4, weights + p, kBlockPositions * 2);
      _tile_loadd(6, value, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, value + kHalf, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, weights + kWeights + p, kBlockPositions * 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, to, pitch);
    _tile_stored(1, to + 16, pitch);
    _tile_stored(2, other, pitch);
    _tile_stored(3, other + 16, pitch);
  }
}

// Interleaves two lines within each quarter of a vector, which changes the order of dims: see
// `restore`.
inline void interleave(__m512i a, __m512i b, uint16_t* to) {
  _mm512_storeu_si512(to, _mm512_unpacklo_epi16(a, b));
  _mm512_storeu_si512(to + kTileBytes / 2, _mm512_unpackhi_epi16(a, b));
}

inline __m512i line_of(const uint16_t* x, int dim, bool exists) {
  const __mmask32 given = dim >= kLine ? 0xffffffff : (1u << dim) - 1;
  return _mm512_maskz_loadu_epi16(exists ? given : 0, x);
}

// Packs the values of positions p and p + 1.
void pack_bfloat_pair(const Vectors& values, int p, int count, uint16_t* to) {
  const auto* value = static_cast<const uint16_t*>(values.at) + p * values.stride;
  const uint16_t* second = value + values.stride;
  if (p + 1 < count && values.dim % kLine == 0) {
    for (int c = 0; c < values.dim; c += kLine, to += kTileBytes) {
      interleave(_mm512_loadu_si512(value + c), _mm512_loadu_si512(second + c), to);
    }
    return;
  }
  for (int c = 0; c < values.dim; c += kLine, to += kTileBytes) {
    interleave(line_of(value + c, values.dim - c, p < count),
               line_of(second + c, values.dim - c, p + 1 < count), to);
  }
}

// Converts 16 int8 numbers to floats. The upper 16 bits of each float are its exact bf16, since
// bf16 has 8 significant bits.
inline __m512i widened_bytes(const int8_t* x) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
  return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
}

void pack_byte_pair(const Vectors& values, int p, int count, uint16_t* to) {
  if (p + 1 >= count || values.dim % kLine != 0) {
    for (int c = 0; c < lines(values.dim) * kLine; c += 16, to += kTileBytes / 2) {
      _mm512_storeu_si512(to, kept_pair(values, p, count, c));
    }
    return;
  }
  const auto* value = static_cast<const int8_t*>(values.at) + p * values.stride;
  const int8_t* second = value + values.stride;
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  for (int c = 0; c < values.dim; c += 16, to += kTileBytes / 2) {
    const __m512i low = _mm512_srli_epi32(widened_bytes(value + c), 16);
    const __m512i high = _mm512_and_si512(widened_bytes(second + c), upper);
    _mm512_storeu_si512(to, _mm512_or_si512(low, high));
  }
}

void pack_byte_key(const int8_t* key, int dim, uint16_t* packed) {
  const __m512i upper_halves =
      _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                       25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  for (int c = 0; c < dim; c += kLine) {
    const __m512i low = widened_bytes(key + c), high = widened_bytes(key + c + 16);
    _mm512_storeu_si512(packed + c, _mm512_permutex2var_epi16(low, upper_halves, high));
  }
}

// 2^(x * factor + negative_largest) in the lanes of `sees`; 0 in the other lanes, even if x is NaN.
inline V power_of_two(V x, V negative_largest, V factor, __mmask16 sees) {
  const V turns = _mm512_fmadd_ps(x, factor, negative_largest);
  const V whole = _mm512_roundscale_ps(turns, 0);
  const V rest = _mm512_sub_ps(turns, whole);
  // A polynomial for 2^rest, with an error below 1e-7 for -1/2 <= rest <= 1/2, and exactly 1 at 0.
  V p = Vec::all(1.326472707e-3f);
  p = _mm512_fmadd_ps(p, rest, Vec::all(9.671512650e-3f));
  p = _mm512_fmadd_ps(p, rest, Vec::all(5.550733744e-2f));
  p = _mm512_fmadd_ps(p, rest, Vec::all(2.402224209e-1f));
  p = _mm512_fmadd_ps(p, rest, Vec::all(6.931469776e-1f));
  p = _mm512_fmadd_ps(p, rest, Vec::all(1.0f));
  return _mm512_maskz_scalef_ps(sees, p, whole);
}

}  // namespace

void pack_queries(const float* const* q, int dim, uint16_t* packed) {
  for (int line = 0; line < lines(dim); ++line) {
    // Before the transposition, square[i] has the pairs of query i; after it, pair i of all
    // queries.
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
  const int width = lines(keys.dim) * kLine, whole = (count + 31) / 32 * 32;
  const bool bytes = keys.kept == Kept::int8 && keys.dim == width;
  for (int position = 0; position < whole; ++position, packed += width) {
    if (bytes && position < count) {
      pack_byte_key(static_cast<const int8_t*>(keys.at) + position * keys.stride, width, packed);
      continue;
    }
    for (int c = 0; c < width; c += 16) {
      const __m256i line =
          position < count ? kept_line(keys, position, c) : _mm256_setzero_si256();
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(packed + c), line);
    }
  }
}

void pack_values(const Vectors& values, int count, const uint8_t* ahead, uint16_t* packed) {
  const int columns = lines(values.dim) * 2;
  const int64_t bytes = ahead == nullptr ? 0 : 2 * values.stride * kept_bytes(values.kept);
  const auto pack = values.kept == Kept::bf16 ? pack_bfloat_pair : pack_byte_pair;
  for (int p = 0; p < (count + kStep - 1) / kStep * kStep; p += 2) {
    fetch(ahead + p / 2 * bytes, bytes);
    const int64_t tile = int64_t{p / kStep} * columns;
    pack(values, p, count, packed + tile * kTileBytes / 2 + p % kStep / 2 * kLine);
  }
}

void restore(float* mixed, int dim_lines) {
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i high =
      _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int line = 0; line < dim_lines; ++line, mixed += kLine) {
    const V first = Vec::load(mixed), second = Vec::load(mixed + 16);
    Vec::store(mixed, _mm512_permutex2var_ps(first, low, second));
    Vec::store(mixed + 16, _mm512_permutex2var_ps(first, high, second));
  }
}

void scores(const uint16_t* keys, int64_t key_stride, int count, const uint16_t* queries,
            int dim_lines, int groups, const uint8_t* ahead, float* scores) {
  const auto compute = groups == 2 ? scores_of_two : scores_of_one;
  compute(keys, key_stride, count, queries, dim_lines, ahead, scores);
}

void weigh(float* scores, int count, float scale, const float* key_scales,
           const float* value_scales, GroupSoftmax& softmax, uint16_t* weights) {
  constexpr float kTurns = 1.44269504088896341f;  // log2 e
  const __m512i low = _mm512_loadu_si512(softmax.low), high = _mm512_loadu_si512(softmax.high);
  const bool all = _mm512_cmpgt_epi32_mask(low, _mm512_setzero_si512()) == 0 &&
                   _mm512_cmplt_epi32_mask(high, _mm512_set1_epi32(count)) == 0;
  const auto sees = [&](int p) -> __mmask16 {
    if (all) return 0xffff;
    const __m512i position = _mm512_set1_epi32(p);
    return _mm512_cmple_epi32_mask(low, position) & _mm512_cmplt_epi32_mask(position, high);
  };
  const V nothing = Vec::all(-__builtin_inff());
  V best = nothing;
  for (int p = 0; p < count; ++p) {
    V score = Vec::load(scores + p * kGroupQueries);
    if (key_scales != nullptr) {
      score = Vec::mul(score, Vec::all(key_scales[p]));
      Vec::store(scores + p * kGroupQueries, score);
    }
    best = _mm512_mask_max_ps(best, sees(p), best, score);
  }
  // score * factor is an exponent of 2. `factor` is above 0, so the largest score remains the
  // largest.
  const V factor = Vec::all(scale * kTurns);
  const V before = _mm512_loadu_ps(softmax.largest);
  const V largest = Vec::larger(before, Vec::mul(best, factor));
  // If a query has had no score yet, its `largest` is -inf, and 0 is used in its place.
  const __mmask16 any = _mm512_cmp_ps_mask(largest, nothing, _CMP_NEQ_UQ);
  const V negative = Vec::mul(_mm512_maskz_mov_ps(any, largest), Vec::all(-1.0f));
  V sum = Vec::zero();
  for (int first = 0; first < count; first += kStep) {
    // Before the transposition, square[i] has the i-th pair of positions for all queries; after it,
    // all pairs of query i.
    V square[16];
    for (int i = 0; i < 16; ++i) {
      V pair[2] = {Vec::zero(), Vec::zero()};
      UNROLL for (int half = 0; half < 2; ++half) {
        const int p = first + 2 * i + half;
        if (p >= count) break;
        const V score = Vec::load(scores + p * kGroupQueries);
        pair[half] = power_of_two(score, negative, factor, sees(p));
        sum = Vec::add(sum, pair[half]);
        if (value_scales != nullptr) pair[half] = Vec::mul(pair[half], Vec::all(value_scales[p]));
      }
      square[i] = _mm512_castsi512_ps(pairs(pair[0], pair[1]));
    }
    Vec::transpose(square);
    for (int query = 0; query < kGroupQueries; ++query) {
      _mm512_storeu_ps(weights + query * kBlockPositions + first, square[query]);
    }
  }
  // The factor is exactly 1 if `largest` is unchanged, and 0 if the query's first score is in this
  // block.
  const __mmask16 same = _mm512_cmp_ps_mask(before, largest, _CMP_EQ_OQ);
  const __mmask16 known = _mm512_cmp_ps_mask(before, nothing, _CMP_NEQ_UQ);
  V rescaled = power_of_two(before, negative, Vec::all(1.0f), known);
  rescaled = _mm512_mask_mov_ps(rescaled, same, Vec::all(1.0f));
  Vec::store(softmax.factor, rescaled);
  Vec::store(softmax.largest, largest);
  Vec::store(softmax.sum, Vec::fma(_mm512_loadu_ps(softmax.sum), rescaled, sum));
}

void multiply(float* mixed, int dim_lines, const float* factor) {
  for (int query = 0; query < kGroupQueries; ++query, mixed += dim_lines * kLine) {
    if (factor[query] == 1.0f) continue;
    const V own = Vec::all(factor[query]);
    for (int c = 0; c < dim_lines * kLine; c += 16) {
      Vec::store(mixed + c, Vec::mul(Vec::load(mixed + c), own));
    }
  }
}

void mix(const uint16_t* values, int count, int dim_lines, int groups, const uint16_t* weights,
         bool first, float* mixed) {
  const auto compute = groups == 2 ? mix_two : mix_one;
  compute(values, count, dim_lines, weights, first, mixed);
}

}  // namespace mixtura::amx
