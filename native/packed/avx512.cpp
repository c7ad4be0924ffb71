// AVX-512 kernels. A VNNI instruction adds four int8 products to each 32-bit lane.
#include <immintrin.h>

#include <cstring>

#include "packed/activations.h"
#include "packed/kernels.h"

#define UNROLL _Pragma("GCC unroll 16")

namespace mixtura {
namespace {

// Adds the products of four unsigned weights and four signed activations to each lane of `sum`.
// This is assembly, because compilers move the intrinsic's accumulators to the stack.
inline __m512i dot(__m512i sum, __m512i weights, __m512i activations) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(activations));
  return sum;
}

inline __m512i four_of(const int8_t* q) {
  int32_t four;
  std::memcpy(&four, q, 4);
  return _mm512_set1_epi32(four);
}

inline __m512 scales_of(const uint8_t* halves) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
}

inline __m512i load(const uint8_t* bytes) { return _mm512_loadu_si512(bytes); }

// Prefetches half of a block's cache lines: half 0 with the block's first group, half 1 with the
// second.
template <int kBits>
inline void fetch_half(const uint8_t* near, const uint8_t* far, int half) {
  constexpr int kLines = block_bytes(kBits) / 64, kFirst = kLines / 2;
  UNROLL for (int line = 0; line < kLines - kFirst; ++line) {
    const int at = (half * kFirst + line) * 64;
    _mm_prefetch(reinterpret_cast<const char*>(near) + at, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(far) + at, _MM_HINT_T1);
  }
}

// The sums of one group (32 inputs) in both tiles of the unit.
template <int kBits, int kRows>
inline void group_sums(const uint8_t* quants, const Row* rows, int group, __m512i (&sums)[2][kRows]) {
  UNROLL for (int row = 0; row < kRows; ++row) {
    sums[0][row] = sums[1][row] = _mm512_set1_epi32(rows[row].offset[group]);
  }
  const int start = group * kGroup;
  if constexpr (kBits == 8) {
    UNROLL for (int quad = 0; quad < 8; ++quad) {
      const __m512i a = load(quants + quad * 128), b = load(quants + quad * 128 + 64);
      UNROLL for (int row = 0; row < kRows; ++row) {
        const __m512i four = four_of(rows[row].q + start + quad * 4);
        sums[0][row] = dot(sums[0][row], a, four);
        sums[1][row] = dot(sums[1][row], b, four);
      }
    }
  } else {
    const __m512i low = _mm512_set1_epi8(15);
    UNROLL for (int pair = 0; pair < 4; ++pair) {
      const __m512i both_a = load(quants + pair * 128), both_b = load(quants + pair * 128 + 64);
      UNROLL for (int half = 0; half < 2; ++half) {
        const __m512i a = _mm512_and_si512(half ? _mm512_srli_epi16(both_a, 4) : both_a, low);
        const __m512i b = _mm512_and_si512(half ? _mm512_srli_epi16(both_b, 4) : both_b, low);
        UNROLL for (int row = 0; row < kRows; ++row) {
          const __m512i four = four_of(rows[row].q + start + pair * 8 + half * 4);
          sums[0][row] = dot(sums[0][row], a, four);
          sums[1][row] = dot(sums[1][row], b, four);
        }
      }
    }
  }
}

template <int kBits, int kSpan, int kRows>
void unit_rows(const uint8_t* unit, int blocks, const Row* given, const Ahead& ahead, float* out) {
  constexpr size_t kStep = block_bytes(kBits);
  constexpr int kGroups = kSpan / kGroup;
  Row rows[kRows];
  UNROLL for (int row = 0; row < kRows; ++row) rows[row] = given[row];
  // With spans of four groups, `part` is the sum of the current span. With spans of one group, it
  // is the sum of all groups.
  __m512 part[2][kRows];
  UNROLL for (int row = 0; row < kRows; ++row) {
    part[0][row] = part[1][row] = _mm512_setzero_ps();
    _mm512_storeu_ps(out + row * kUnit, part[0][row]);
    _mm512_storeu_ps(out + row * kUnit + kTile, part[1][row]);
  }
  for (int block = 0; block < blocks; ++block) {
    const uint8_t* near = ahead.from(unit, ahead.distance);
    const uint8_t* far = ahead.from(unit, ahead.distance + kFarther);
    UNROLL for (int half = 0; half < 2; ++half) {
      if (ahead.distance != 0) fetch_half<kBits>(near, far, half);
      const int group = 2 * block + half;
      __m512i sums[2][kRows];
      group_sums<kBits, kRows>(unit + kScaleBytes + half * (kStep - kScaleBytes) / 2, rows, group,
                               sums);
      const __m512 scale_a = scales_of(unit + half * 32), scale_b = scales_of(unit + 64 + half * 32);
      UNROLL for (int row = 0; row < kRows; ++row) {
        __m512 a = scale_a, b = scale_b;
        if constexpr (kGroups == 1) {
          const __m512 own = _mm512_set1_ps(rows[row].scale[group]);
          a = _mm512_mul_ps(a, own);
          b = _mm512_mul_ps(b, own);
        }
        part[0][row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[0][row]), a, part[0][row]);
        part[1][row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[1][row]), b, part[1][row]);
      }
    }
    if constexpr (kGroups > 1) {
      constexpr int kBlocks = kGroups / 2;
      if (block % kBlocks == kBlocks - 1 || block == blocks - 1) {
        UNROLL for (int row = 0; row < kRows; ++row) {
          const __m512 own = _mm512_set1_ps(rows[row].scale[block / kBlocks]);
          UNROLL for (int tile = 0; tile < 2; ++tile) {
            float* sum = out + row * kUnit + tile * kTile;
            _mm512_storeu_ps(sum, _mm512_fmadd_ps(part[tile][row], own, _mm512_loadu_ps(sum)));
            part[tile][row] = _mm512_setzero_ps();
          }
        }
      }
    }
    unit += kStep;
  }
  if constexpr (kGroups == 1) {
    UNROLL for (int row = 0; row < kRows; ++row) {
      _mm512_storeu_ps(out + row * kUnit, part[0][row]);
      _mm512_storeu_ps(out + row * kUnit + kTile, part[1][row]);
    }
  }
}

constexpr int kMostRows = 6;

template <int kBits, int kSpan>
void unit_of(const uint8_t* unit, int blocks, const Row* rows, int count, const Ahead& ahead,
             float* out) {
  switch (count) {
    case 1: return unit_rows<kBits, kSpan, 1>(unit, blocks, rows, ahead, out);
    case 2: return unit_rows<kBits, kSpan, 2>(unit, blocks, rows, ahead, out);
    case 3: return unit_rows<kBits, kSpan, 3>(unit, blocks, rows, ahead, out);
    case 4: return unit_rows<kBits, kSpan, 4>(unit, blocks, rows, ahead, out);
    case 5: return unit_rows<kBits, kSpan, 5>(unit, blocks, rows, ahead, out);
    case 6: return unit_rows<kBits, kSpan, 6>(unit, blocks, rows, ahead, out);
  }
}

void unit(int bits, int span, const uint8_t* unit, int blocks, const Row* rows, int count,
          const Ahead& ahead, float* out) {
  if (bits == 4) {
    if (span == kDecodeSpan) return unit_of<4, kDecodeSpan>(unit, blocks, rows, count, ahead, out);
    return unit_of<4, kPrefillSpan>(unit, blocks, rows, count, ahead, out);
  }
  if (span == kDecodeSpan) return unit_of<8, kDecodeSpan>(unit, blocks, rows, count, ahead, out);
  unit_of<8, kPrefillSpan>(unit, blocks, rows, count, ahead, out);
}

void widen(const uint8_t* four, int blocks, uint8_t* eight) {
  const __m512i low = _mm512_set1_epi8(15);
  for (int block = 0; block < blocks; ++block) {
    _mm512_storeu_si512(eight, load(four));
    _mm512_storeu_si512(eight + 64, load(four + 64));
    UNROLL for (int pair = 0; pair < 8; ++pair) {
      const uint8_t* from = four + kScaleBytes + pair * 128;
      uint8_t* to = eight + kScaleBytes + pair * 256;
      const __m512i a = load(from), b = load(from + 64);
      _mm512_storeu_si512(to, _mm512_and_si512(a, low));
      _mm512_storeu_si512(to + 64, _mm512_and_si512(b, low));
      _mm512_storeu_si512(to + 128, _mm512_and_si512(_mm512_srli_epi16(a, 4), low));
      _mm512_storeu_si512(to + 192, _mm512_and_si512(_mm512_srli_epi16(b, 4), low));
    }
    four += block_bytes(4);
    eight += block_bytes(8);
  }
}

inline __m512 inputs_at(const float* x, int start, int inputs) {
  const int left = inputs - start;
  if (left >= 16) return _mm512_loadu_ps(x + start);
  const __mmask16 given = left > 0 ? static_cast<__mmask16>((1u << left) - 1) : 0;
  return _mm512_maskz_loadu_ps(given, x + start);
}

void quantise(const float* x, int inputs, int span, int weight_offset, int8_t* q, float* scale,
              int32_t* offset) {
  const int padded = static_cast<int>(round_up(inputs, kBlock));
  for (int start = 0; start < padded; start += span) {
    const int end = start + span < padded ? start + span : padded;
    __m512 most = _mm512_setzero_ps();
    __mmask16 no_number = 0;
    for (int i = start; i < end; i += 16) {
      const __m512 part = inputs_at(x, i, inputs);
      most = _mm512_max_ps(most, _mm512_abs_ps(part));
      no_number |= _mm512_cmp_ps_mask(part, part, _CMP_UNORD_Q);
    }
    float largest = _mm512_reduce_max_ps(most);
    // A NaN makes the scale NaN, so that the output is NaN as well.
    if (no_number) largest = __builtin_nanf("");
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    for (int group = start; group < end; group += kGroup) {
      __m512i sum = _mm512_setzero_si512();
      for (int i = group; i < group + kGroup; i += 16) {
        const __m512 scaled = _mm512_mul_ps(inputs_at(x, i, inputs), _mm512_set1_ps(inverse));
        const __m512i whole = inverse > 0.0f ? _mm512_cvtps_epi32(scaled) : _mm512_setzero_si512();
        sum = _mm512_add_epi32(sum, whole);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i), _mm512_cvtepi32_epi8(whole));
      }
      offset[group / kGroup] = -weight_offset * _mm512_reduce_add_epi32(sum);
    }
    scale[start / span] = largest / 127.0f;
  }
}

}  // namespace

const Kernels& avx512_kernels() {
  static const Kernels kernels{"avx512", kMostRows, 16, unit, widen, quantise, activate_rows};
  return kernels;
}

}  // namespace mixtura
