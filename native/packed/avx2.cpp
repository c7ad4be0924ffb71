// AVX2 kernels. Products of bytes are added in pairs in 16 bits, and the pairs are summed in 32
// bits.
#include <immintrin.h>

#include <cstring>

#include "packed/activations.h"
#include "packed/kernels.h"

#define UNROLL _Pragma("GCC unroll 16")

namespace mixtura {
namespace {

constexpr int kMostRows = 4;

inline __m256i load(const uint8_t* bytes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
}

inline __m256i four_of(const int8_t* q) {
  int32_t four;
  std::memcpy(&four, q, 4);
  return _mm256_set1_epi32(four);
}

inline __m256i add_dot(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
  const __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// Two products of 255 * 127 overflow 16 bits. So an 8-bit weight is split into its size, at most
// 127, and its sign, which is applied to the activation.
inline __m256i add_signed(__m256i sum, __m256i stored, __m256i activations) {
  const __m256i weight = _mm256_xor_si256(stored, _mm256_set1_epi8(static_cast<char>(0x80)));
  return add_dot(sum, _mm256_abs_epi8(weight), _mm256_sign_epi8(activations, weight));
}

// The sums of one group (32 inputs) in one tile, with 8 channels a vector. `add_signed` makes 8-bit
// weights signed, so only 4-bit weights need the offset.
template <int kBits, int kRows>
inline void group_sums(const uint8_t* quants, const Row* rows, int group, __m256i (&sums)[2][kRows]) {
  UNROLL for (int row = 0; row < kRows; ++row) {
    sums[0][row] = sums[1][row] = _mm256_set1_epi32(kBits == 4 ? rows[row].offset[group] : 0);
  }
  const int start = group * kGroup;
  if constexpr (kBits == 8) {
    UNROLL for (int quad = 0; quad < 8; ++quad) {
      const __m256i a = load(quants + quad * 128), b = load(quants + quad * 128 + 32);
      UNROLL for (int row = 0; row < kRows; ++row) {
        const __m256i four = four_of(rows[row].q + start + quad * 4);
        sums[0][row] = add_signed(sums[0][row], a, four);
        sums[1][row] = add_signed(sums[1][row], b, four);
      }
    }
  } else {
    const __m256i low = _mm256_set1_epi8(15);
    UNROLL for (int pair = 0; pair < 4; ++pair) {
      const __m256i both_a = load(quants + pair * 128), both_b = load(quants + pair * 128 + 32);
      UNROLL for (int half = 0; half < 2; ++half) {
        const __m256i a = _mm256_and_si256(half ? _mm256_srli_epi16(both_a, 4) : both_a, low);
        const __m256i b = _mm256_and_si256(half ? _mm256_srli_epi16(both_b, 4) : both_b, low);
        UNROLL for (int row = 0; row < kRows; ++row) {
          const __m256i four = four_of(rows[row].q + start + pair * 8 + half * 4);
          sums[0][row] = add_dot(sums[0][row], a, four);
          sums[1][row] = add_dot(sums[1][row], b, four);
        }
      }
    }
  }
}

template <int kBits, int kRows>
void unit_rows(int span, const uint8_t* unit, int blocks, const Row* rows, const Ahead& ahead,
               float* out) {
  constexpr size_t kStep = block_bytes(kBits);
  constexpr int64_t kGroupBytes = (kStep - kScaleBytes) / 2;
  const int groups_of_span = span / kGroup;
  // part[row][channel] is the sum of the current span, and out[row][channel] that of earlier spans.
  // With spans of one group, `part` is the sum of all groups.
  alignas(32) float part[kRows * kUnit] = {};
  for (int i = 0; i < kRows * kUnit; ++i) out[i] = 0.0f;
  for (int group = 0; group < 2 * blocks; ++group) {
    const uint8_t* block = unit + (group / 2) * kStep;
    if (ahead.distance != 0) {
      const uint8_t* near = ahead.from(block, ahead.distance);
      const uint8_t* far = ahead.from(block, ahead.distance + kFarther);
      for (int64_t line = group % 2 * kGroupBytes; line < (group % 2 + 1) * kGroupBytes; line += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(near + line), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(far + line), _MM_HINT_T1);
      }
    }
    for (int tile = 0; tile < 2; ++tile) {
      __m256i sums[2][kRows];
      const uint8_t* quants = block + kScaleBytes + group % 2 * kGroupBytes + tile * 64;
      group_sums<kBits, kRows>(quants, rows, group, sums);
      UNROLL for (int half = 0; half < 2; ++half) {
        const uint8_t* halves = block + tile * 64 + group % 2 * 32 + half * 16;
        const __m256 scale =
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
        UNROLL for (int row = 0; row < kRows; ++row) {
          float* sum = part + row * kUnit + tile * kTile + half * 8;
          __m256 factor = scale;
          if (groups_of_span == 1) {
            factor = _mm256_mul_ps(scale, _mm256_set1_ps(rows[row].scale[group]));
          }
          const __m256 whole = _mm256_cvtepi32_ps(sums[half][row]);
          _mm256_store_ps(sum, _mm256_fmadd_ps(whole, factor, _mm256_load_ps(sum)));
        }
      }
    }
    if (groups_of_span > 1 &&
        (group % groups_of_span == groups_of_span - 1 || group == 2 * blocks - 1)) {
      for (int row = 0; row < kRows; ++row) {
        const __m256 own = _mm256_set1_ps(rows[row].scale[group / groups_of_span]);
        for (int i = row * kUnit; i < (row + 1) * kUnit; i += 8) {
          const __m256 sum = _mm256_loadu_ps(out + i);
          _mm256_storeu_ps(out + i, _mm256_fmadd_ps(_mm256_load_ps(part + i), own, sum));
          _mm256_store_ps(part + i, _mm256_setzero_ps());
        }
      }
    }
  }
  if (groups_of_span == 1) std::memcpy(out, part, sizeof part);
}

template <int kBits>
void unit_of(int span, const uint8_t* unit, int blocks, const Row* rows, int count,
             const Ahead& ahead, float* out) {
  switch (count) {
    case 1: return unit_rows<kBits, 1>(span, unit, blocks, rows, ahead, out);
    case 2: return unit_rows<kBits, 2>(span, unit, blocks, rows, ahead, out);
    case 3: return unit_rows<kBits, 3>(span, unit, blocks, rows, ahead, out);
    case 4: return unit_rows<kBits, 4>(span, unit, blocks, rows, ahead, out);
  }
}

void unit(int bits, int span, const uint8_t* unit, int blocks, const Row* rows, int count,
          const Ahead& ahead, float* out) {
  if (bits == 4) return unit_of<4>(span, unit, blocks, rows, count, ahead, out);
  unit_of<8>(span, unit, blocks, rows, count, ahead, out);
}

inline __m256 inputs_at(const float* x, int start, int inputs) {
  if (start + 8 <= inputs) return _mm256_loadu_ps(x + start);
  float given[8] = {};
  for (int i = 0; start + i < inputs && i < 8; ++i) given[i] = x[start + i];
  return _mm256_loadu_ps(given);
}

void quantise(const float* x, int inputs, int span, int weight_offset, int8_t* q, float* scale,
              int32_t* offset) {
  const __m256 size_bits = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const int padded = static_cast<int>(round_up(inputs, kBlock));
  for (int start = 0; start < padded; start += span) {
    const int end = start + span < padded ? start + span : padded;
    __m256 most = _mm256_setzero_ps(), no_number = _mm256_setzero_ps();
    for (int i = start; i < end; i += 8) {
      const __m256 part = inputs_at(x, i, inputs);
      most = _mm256_max_ps(most, _mm256_and_ps(part, size_bits));
      no_number = _mm256_or_ps(no_number, _mm256_cmp_ps(part, part, _CMP_UNORD_Q));
    }
    alignas(32) float each[8];
    _mm256_store_ps(each, most);
    float largest = 0.0f;
    for (float one : each) largest = one > largest ? one : largest;
    // A NaN makes the scale NaN, so that the output is NaN as well.
    if (_mm256_movemask_ps(no_number)) largest = __builtin_nanf("");
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    for (int i = start; i < end; i += 8) {
      alignas(32) int32_t whole[8] = {};
      if (inverse > 0.0f) {
        const __m256 scaled = _mm256_mul_ps(inputs_at(x, i, inputs), _mm256_set1_ps(inverse));
        _mm256_store_si256(reinterpret_cast<__m256i*>(whole), _mm256_cvtps_epi32(scaled));
      }
      for (int j = 0; j < 8; ++j) q[i + j] = static_cast<int8_t>(whole[j]);
    }
    scale[start / span] = largest / 127.0f;
  }
  for (int group = 0; group < padded / kGroup; ++group) {
    int32_t sum = 0;
    for (int i = 0; i < kGroup; ++i) sum += q[group * kGroup + i];
    offset[group] = -weight_offset * sum;
  }
}

}  // namespace

const Kernels& avx2_kernels() {
  // `widen` is null: the 8-bit loop assumes an offset of 128, but widened 4-bit weights have 8.
  static const Kernels kernels{"avx2", kMostRows, 1 << 30, unit, nullptr, quantise, activate_rows};
  return kernels;
}

}  // namespace mixtura
